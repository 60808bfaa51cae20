"""What each stage of a batch run took and came to: batch tasks live too short to be asked for their metrics."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TABLES = """
CREATE TABLE stage_times (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    pipeline    text        NOT NULL,
    generation  bigint,
    stage       text        NOT NULL,
    shard       integer,
    started_at  timestamptz NOT NULL,
    seconds     double precision NOT NULL,
    partitions  integer     NOT NULL DEFAULT 0,
    rows        bigint      NOT NULL DEFAULT 0,
    outcome     text        NOT NULL,
    reason      text        NOT NULL DEFAULT '',
    steps       jsonb       NOT NULL DEFAULT '{}',
    recorded_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE stage_times IS
    'Attempts at stages of batch runs; shard is its first partition, steps the seconds of its parts. Best effort.';
CREATE INDEX stage_times_generation ON stage_times (pipeline, generation);
CREATE INDEX stage_times_recorded_at ON stage_times (pipeline, recorded_at);
"""


def upgrade() -> None:
    """Create the table."""
    op.execute(TABLES)


def downgrade() -> None:
    """Drop the table and what it says."""
    op.execute("DROP TABLE stage_times")
