"""How far the offline features of each view and partition have been brought into the online store."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

TABLES = """
CREATE TABLE feature_watermarks (
    pipeline   text        NOT NULL,
    view       text        NOT NULL,
    partition  integer     NOT NULL,
    definition text        NOT NULL,
    through    timestamptz NOT NULL,
    files_at   timestamptz NOT NULL,
    token      text        NOT NULL,
    written_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (pipeline, view, partition)
);
COMMENT ON TABLE feature_watermarks IS
    'The view''s rows up to `through`, of its files as they were at `files_at`, are in the online store, '
    'while that still holds `token`.';
"""


def upgrade() -> None:
    """Create the table."""
    op.execute(TABLES)


def downgrade() -> None:
    """Drop it: the next materialization reads everything again."""
    op.execute("DROP TABLE feature_watermarks")
