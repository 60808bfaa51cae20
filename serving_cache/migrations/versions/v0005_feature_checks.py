"""What checks of features found, and what was learned of them from training windows."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

TABLES = """
CREATE TABLE feature_checks (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    pipeline   text             NOT NULL,
    service    text             NOT NULL,
    checked_at timestamptz      NOT NULL,
    sampled    integer          NOT NULL,
    seconds    double precision NOT NULL
);
CREATE INDEX feature_checks_newest ON feature_checks (pipeline, checked_at);
COMMENT ON TABLE feature_checks IS
    'Checks of pipelines'' features: sampled online features beside offline ones, quality, drift, ages.';

CREATE TABLE feature_check_views (
    check_id       bigint  NOT NULL REFERENCES feature_checks ON DELETE CASCADE,
    view           text    NOT NULL,
    ttl_seconds    double precision,
    pushed         boolean NOT NULL,
    offline_newest timestamptz,
    online_newest  timestamptz,
    sampled        integer NOT NULL,
    missing        integer NOT NULL,
    expired        integer NOT NULL,
    in_flight      integer NOT NULL,
    expectations   integer NOT NULL,
    refused        jsonb   NOT NULL,
    bounds_version integer,
    PRIMARY KEY (check_id, view)
);
COMMENT ON COLUMN feature_check_views.refused IS 'Learned expectations that recent rows did not meet, in words.';

CREATE TABLE feature_check_features (
    check_id  bigint NOT NULL REFERENCES feature_checks ON DELETE CASCADE,
    view      text   NOT NULL,
    feature   text   NOT NULL,
    skew      jsonb,
    profile   jsonb,
    drift     double precision,
    drift_max double precision,
    PRIMARY KEY (check_id, view, feature)
);
COMMENT ON COLUMN feature_check_features.skew IS
    'compared, unequal, only_online, only_offline, greatest, mean (absolute differences), examples';

CREATE TABLE feature_bounds (
    pipeline   text        NOT NULL,
    view       text        NOT NULL,
    version    integer     NOT NULL,
    learned_at timestamptz NOT NULL,
    start_at   timestamptz NOT NULL,
    end_at     timestamptz NOT NULL,
    rows       bigint      NOT NULL,
    parts      integer     NOT NULL,
    definition text        NOT NULL,
    how        text        NOT NULL,
    bounds     jsonb       NOT NULL,
    PRIMARY KEY (pipeline, view, version)
);
COMMENT ON TABLE feature_bounds IS
    'What was learned of each feature from a training window, by view; a version is never changed.';
"""


def upgrade() -> None:
    """Create the tables."""
    op.execute(TABLES)


def downgrade() -> None:
    """Drop them and what they say."""
    op.execute("DROP TABLE feature_check_features, feature_check_views, feature_checks, feature_bounds")
