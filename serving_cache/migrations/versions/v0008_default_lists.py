"""The default that a generation of ranked lists holds."""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; generations of before hold none."""
    op.execute(
        "ALTER TABLE generations ADD COLUMN default_list jsonb; "
        "COMMENT ON COLUMN generations.default_list IS "
        "'For entities without a list, where lists are ranked: items, scores, attributes.'"
    )


def downgrade() -> None:
    """Remove it."""
    op.execute("ALTER TABLE generations DROP COLUMN default_list")
