"""What was served to a sample of entities, and how far it was from what was observed."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

TABLES = """
CREATE TABLE prediction_sample (
    pipeline  text PRIMARY KEY,
    threshold bigint NOT NULL
);
COMMENT ON TABLE prediction_sample IS
    'Entities whose predictions are logged: those whose key''s MD5, its first 32 bits, lies below the threshold.';

CREATE TABLE prediction_log (
    pipeline    text             NOT NULL,
    entity      text COLLATE "C" NOT NULL,
    source      text             NOT NULL CHECK (source IN ('batch', 'stream', 'fresh')),
    model       text             NOT NULL,
    hour        timestamptz      NOT NULL,
    generation  bigint           NOT NULL,
    as_of       timestamptz      NOT NULL,
    computed_at timestamptz      NOT NULL,
    served_at   timestamptz      NOT NULL,
    values      jsonb            NOT NULL,
    PRIMARY KEY (pipeline, entity, source, model, hour)
);
COMMENT ON TABLE prediction_log IS
    'Predictions that were served, of the sampled entities: of each source and model the first in each hour of as_of.';
CREATE INDEX prediction_log_as_of ON prediction_log (pipeline, as_of);

CREATE TABLE outcome_progress (
    pipeline text PRIMARY KEY,
    through  timestamptz
);
COMMENT ON TABLE outcome_progress IS 'Predicted moments up to which outcomes are computed.';

CREATE TABLE outcomes (
    pipeline          text        NOT NULL,
    output            text        NOT NULL,
    source            text        NOT NULL,
    model             text        NOT NULL,
    hour              timestamptz NOT NULL,
    n                 bigint      NOT NULL,
    error_sum         double precision NOT NULL,
    absolute_sum      double precision NOT NULL,
    squared_sum       double precision NOT NULL,
    age_sum           double precision NOT NULL,
    as_now_n          bigint      NOT NULL,
    as_now_absolute   double precision NOT NULL,
    paired_n          bigint      NOT NULL,
    paired_absolute   double precision NOT NULL,
    paired_age        double precision NOT NULL,
    replaced_absolute double precision NOT NULL,
    replaced_age      double precision NOT NULL,
    PRIMARY KEY (pipeline, output, source, model, hour)
);
CREATE INDEX outcomes_hour ON outcomes (pipeline, hour);
COMMENT ON TABLE outcomes IS
    'Errors of what was served, summed over the predicted moments of an hour; ages are at these moments, in seconds.';
"""

# A trigger, so that stream, fresh computation and every later writer of overlays log alike, in the transaction in which
# Postgres accepts the overlay; and whatever goes wrong in it costs a log row, never an overlay.
FUNCTION = """
CREATE FUNCTION log_overlays() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO prediction_log
        (pipeline, entity, source, model, hour, generation, as_of, computed_at, served_at, values)
    SELECT w.pipeline, w.entity, CASE w.topic WHEN '' THEN 'fresh' ELSE 'stream' END, w.model,
        date_trunc('hour', w.as_of, 'UTC'), g.generation, w.as_of, w.computed_at, clock_timestamp(), w.values
    FROM written w
    JOIN prediction_sample s ON s.pipeline = w.pipeline
    JOIN pointers p ON p.pipeline = w.pipeline
    JOIN generations g ON g.pipeline = p.pipeline AND g.generation = p.generation
    WHERE w.model = g.model AND w.as_of >= g.as_of
        AND ('x' || left(md5(w.entity), 8))::bit(32)::bigint < s.threshold
    ORDER BY w.entity, w.model
    ON CONFLICT DO NOTHING;
    RETURN NULL;
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'overlays were not logged: %', SQLERRM;
    RETURN NULL;
END $$;
CREATE TRIGGER overlay_inserted AFTER INSERT ON overlay
    REFERENCING NEW TABLE AS written FOR EACH STATEMENT EXECUTE FUNCTION log_overlays();
CREATE TRIGGER overlay_updated AFTER UPDATE ON overlay
    REFERENCING NEW TABLE AS written FOR EACH STATEMENT EXECUTE FUNCTION log_overlays();
"""


def upgrade() -> None:
    """Create the tables, and the trigger that fills the log with overlays."""
    op.execute(TABLES)
    op.execute(FUNCTION)


def downgrade() -> None:
    """Drop them and what they say."""
    op.execute("DROP TRIGGER overlay_updated ON overlay; DROP TRIGGER overlay_inserted ON overlay")
    op.execute("DROP FUNCTION log_overlays(); DROP TABLE outcomes, outcome_progress, prediction_log, prediction_sample")
