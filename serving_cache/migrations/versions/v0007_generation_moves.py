"""Moves of the pointer, what a rollback holds, end manifests and what they are made of."""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

# A generation is `previous` while it is whole, and `retired` once retention has let its rows go.
CHANGES = """
ALTER TABLE generations
    ADD COLUMN left_at  timestamptz,
    ADD COLUMN manifest jsonb,
    ADD COLUMN alert    text NOT NULL DEFAULT '';
COMMENT ON COLUMN generations.left_at IS 'When it last ceased to be current.';
COMMENT ON COLUMN generations.manifest IS 'Its end manifest: counts, digest of blocks, model, what outputs are like.';
COMMENT ON COLUMN generations.alert IS 'What was unusual when it was published; empty if nothing was.';
UPDATE generations SET state = 'previous' WHERE state = 'retired' AND dropped_at IS NULL;
UPDATE generations SET state = 'retired' WHERE dropped_at IS NOT NULL;

ALTER TABLE pointers
    ADD COLUMN held         bigint,
    ADD COLUMN partitioning text NOT NULL DEFAULT '';
COMMENT ON COLUMN pointers.held IS 'The generation rolled back: nothing goes over it until that is cleared.';
COMMENT ON COLUMN pointers.partitioning IS 'A partitioning that the next generation may change to; empty for none.';

ALTER TABLE ledger ADD COLUMN stats jsonb;
COMMENT ON COLUMN ledger.stats IS 'Of each output: minimum, maximum, sum, and number of nulls.';
ALTER TABLE generation_partitions ADD COLUMN stats jsonb;
COMMENT ON COLUMN generation_partitions.stats IS 'Of each output: minimum, maximum, sum, and number of nulls.';

CREATE TABLE pointer_moves (
    pipeline   text        NOT NULL,
    epoch      bigint      NOT NULL,
    kind       text        NOT NULL CHECK (kind IN ('publish', 'rollback')),
    generation bigint      NOT NULL,
    previous   bigint,
    moved_at   timestamptz NOT NULL,
    PRIMARY KEY (pipeline, epoch)
);
COMMENT ON TABLE pointer_moves IS 'Every move of a pointer, in the transaction that made it.';
"""


def upgrade() -> None:
    """Add the columns and the table."""
    op.execute(CHANGES)


def downgrade() -> None:
    """Remove them; what is held is forgotten."""
    op.execute(
        "DROP TABLE pointer_moves; "
        "ALTER TABLE generation_partitions DROP COLUMN stats; ALTER TABLE ledger DROP COLUMN stats; "
        "ALTER TABLE pointers DROP COLUMN held, DROP COLUMN partitioning; "
        "ALTER TABLE generations DROP COLUMN left_at, DROP COLUMN manifest, DROP COLUMN alert"
    )
