"""What each entity of a block was scored from, so that the next run scores only those whose inputs changed."""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

# Hashes do not compress: EXTERNAL spares the server the attempt.
CHANGES = """
CREATE TABLE entity_digests (
    pipeline   text   NOT NULL,
    generation bigint NOT NULL,
    partition  int    NOT NULL,
    digests    bytea  STORAGE EXTERNAL NOT NULL,
    PRIMARY KEY (pipeline, generation, partition)
);
COMMENT ON TABLE entity_digests IS
    'Digests of what the entities of a block were scored from, in the order of its keys; '
    'generation is the one whose run wrote the rows.';
ALTER TABLE stage_times ADD COLUMN unchanged bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN stage_times.unchanged IS 'Of its rows those that were not scored, for their inputs were as before.';
"""


def upgrade() -> None:
    """Add the table and the column."""
    op.execute(CHANGES)


def downgrade() -> None:
    """Remove them; the next run scores every entity of a partition that changed."""
    op.execute("DROP TABLE entity_digests; ALTER TABLE stage_times DROP COLUMN unchanged")
