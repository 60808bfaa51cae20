"""The tables that all pipelines share: generations, pointers, manifests, ledger, overlay."""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TABLES = """
CREATE TABLE generations (
    pipeline            text        NOT NULL,
    generation          bigint      NOT NULL,
    run_key             text        NOT NULL,
    cutoff              timestamptz NOT NULL,
    as_of               timestamptz NOT NULL,
    state               text        NOT NULL CHECK (state IN
        ('staged', 'current', 'previous', 'retired', 'rejected', 'rolled_back', 'archived')),
    model               text        NOT NULL,
    model_hash          text        NOT NULL,
    entity              text        NOT NULL,
    outputs             text[]      NOT NULL,
    partitioning        text        NOT NULL,
    partitions          integer     NOT NULL,
    fencing_token       bigint      NOT NULL,
    epoch               bigint,
    rows                bigint      NOT NULL DEFAULT 0,
    coverage            double precision NOT NULL DEFAULT 0,
    reason              text        NOT NULL DEFAULT '',
    clock_shift_seconds double precision NOT NULL DEFAULT 0,
    created_at          timestamptz NOT NULL,
    published_at        timestamptz,
    dropped_at          timestamptz,
    PRIMARY KEY (pipeline, generation)
);
COMMENT ON TABLE generations IS 'Every generation that a batch run opened, and what became of it.';
CREATE UNIQUE INDEX generations_unfinished ON generations (pipeline, run_key) WHERE state = 'staged';

CREATE TABLE pointers (
    pipeline   text PRIMARY KEY,
    epoch      bigint NOT NULL DEFAULT 0,
    generation bigint,
    previous   bigint,
    moved_at   timestamptz,
    FOREIGN KEY (pipeline, generation) REFERENCES generations,
    FOREIGN KEY (pipeline, previous) REFERENCES generations (pipeline, generation)
);
COMMENT ON TABLE pointers IS 'Which generation readers read; epoch grows with each move.';

CREATE TABLE generation_partitions (
    pipeline    text        NOT NULL,
    generation  bigint      NOT NULL,
    partition   integer     NOT NULL,
    origin      bigint      NOT NULL,
    block_hash  text        NOT NULL,
    rows        integer     NOT NULL,
    as_of       timestamptz NOT NULL,
    computed_at timestamptz NOT NULL,
    reason      text        NOT NULL DEFAULT '',
    PRIMARY KEY (pipeline, generation, partition),
    FOREIGN KEY (pipeline, generation) REFERENCES generations,
    FOREIGN KEY (pipeline, origin) REFERENCES generations (pipeline, generation)
);
COMMENT ON TABLE generation_partitions IS
    'Manifests: which rows make up a generation; origin is the generation whose run wrote them.';

CREATE TABLE ledger (
    pipeline    text    NOT NULL,
    generation  bigint  NOT NULL,
    partition   integer NOT NULL,
    state       text    NOT NULL CHECK (state IN ('planned', 'staged', 'quarantined')),
    token       bigint  NOT NULL,
    block_hash  text,
    rows        integer NOT NULL DEFAULT 0,
    as_of       timestamptz,
    computed_at timestamptz,
    reason      text    NOT NULL DEFAULT '',
    updated_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (pipeline, generation, partition),
    FOREIGN KEY (pipeline, generation) REFERENCES generations
);
COMMENT ON TABLE ledger IS 'What each run has done, partition by partition; a retry does only the rest.';

CREATE TABLE overlay (
    pipeline        text        NOT NULL,
    entity          text        NOT NULL,
    model           text        NOT NULL,
    as_of           timestamptz NOT NULL,
    topic           text COLLATE "C" NOT NULL,
    kafka_partition integer     NOT NULL,
    kafka_offset    bigint      NOT NULL,
    values          jsonb       NOT NULL,
    computed_at     timestamptz NOT NULL,
    written_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (pipeline, entity, model)
);
COMMENT ON TABLE overlay IS 'Newest prediction from the stream for each entity and model.';
CREATE INDEX overlay_as_of ON overlay (pipeline, model, as_of);
CREATE INDEX overlay_written_at ON overlay (pipeline, written_at);
"""


def upgrade() -> None:
    """Create the tables."""
    op.execute(TABLES)


def downgrade() -> None:
    """Drop the tables and what they say."""
    op.execute("DROP TABLE overlay, ledger, generation_partitions, pointers, generations")
