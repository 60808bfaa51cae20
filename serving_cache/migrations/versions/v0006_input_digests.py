"""What each partition was scored from, so that what did not change is carried forward instead of scored again."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# A partition that is `unchanged` counts as covered: `origin` is the generation whose run wrote its rows.
CHANGES = """
ALTER TABLE generations
    ADD COLUMN code_digest   text    NOT NULL DEFAULT '',
    ADD COLUMN source_digest text    NOT NULL DEFAULT '',
    ADD COLUMN backfill      boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN generations.code_digest IS 'Of the code and the declaration that made its rows.';
COMMENT ON COLUMN generations.source_digest IS
    'Of everything its features were read from; empty if that changed meanwhile or cannot be told.';
COMMENT ON COLUMN generations.backfill IS 'Made for the past: archived, never current.';
ALTER TABLE ledger
    ADD COLUMN input_digest text NOT NULL DEFAULT '',
    ADD COLUMN origin       bigint,
    ADD COLUMN report       text NOT NULL DEFAULT '',
    DROP CONSTRAINT ledger_state_check,
    ADD CONSTRAINT ledger_state_check CHECK (state IN ('planned', 'staged', 'quarantined', 'unchanged')),
    ADD CONSTRAINT ledger_origin_check CHECK ((state = 'unchanged') = (origin IS NOT NULL));
COMMENT ON COLUMN ledger.input_digest IS 'Of the features that the partition was scored from; empty if not known.';
COMMENT ON COLUMN ledger.report IS 'Where a person finds what the gate found, below the state directory.';
ALTER TABLE generation_partitions ADD COLUMN input_digest text NOT NULL DEFAULT '';
"""


def upgrade() -> None:
    """Add the columns."""
    op.execute(CHANGES)


def downgrade() -> None:
    """Remove them; a generation that is unfinished scores again what it had found unchanged."""
    op.execute(
        "ALTER TABLE ledger DROP CONSTRAINT ledger_origin_check, DROP CONSTRAINT ledger_state_check; "
        "UPDATE ledger SET state = 'planned', block_hash = NULL, rows = 0 WHERE state = 'unchanged'; "
        "ALTER TABLE ledger ADD CONSTRAINT ledger_state_check CHECK (state IN ('planned', 'staged', 'quarantined')), "
        "DROP COLUMN input_digest, DROP COLUMN origin, DROP COLUMN report"
    )
    op.execute("ALTER TABLE generation_partitions DROP COLUMN input_digest")
    op.execute("ALTER TABLE generations DROP COLUMN code_digest, DROP COLUMN source_digest, DROP COLUMN backfill")
