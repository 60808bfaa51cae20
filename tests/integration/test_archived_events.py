"""Events reach history: what the stream archived is what the next batch run scores from."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from almanac.blocks import decode
from almanac.clock import HOUR, floor_hour, utc_now
from almanac.pipeline import Pipeline
from almanac.settings import Settings, load_settings
from features.archive import archived_files, open_archive
from features.grid import HISTORY_HOURS
from features.ingest import refresh
from features.materialize.run import materialize
from features.offline.reading import historical
from features.online import OnlineFeatures, observation_row
from features.store import apply
from jobs.check import gate_features
from jobs.plan import plan
from jobs.publish import publish
from jobs.score import score_shard
from serving_cache.migrate import migrate
from serving_cache.postgres import PostgresStore
from streaming.archiving import Archiving
from streaming.events import Event
from streaming.records import Consumed, feature_record
from streaming.report import Report
from tests.generations import new_name
from tests.streams import GRID, register_model, tiny_pipeline

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")

THIRTEEN = floor_hour(utc_now()) - 2 * HOUR
"""The newest hour of the source; an hour later the batch runs, and another later it is now."""


@dataclass(frozen=True)
class World:
    """A pipeline whose source ends at 13:00, with its archive."""

    pipeline: Pipeline
    settings: Settings
    archiving: Archiving

    def observe(self, *events: tuple[int, datetime, float], first_offset: int = 0) -> dict[str, int]:
        """Archive events as the worker hands them on."""
        records = []
        for offset, (cell, moment, value) in enumerate(events, start=first_offset):
            origin = Consumed(topic="t.observations", partition=0, offset=offset, key=None, value=None)
            written = feature_record(self.pipeline, origin, Event(entity=cell, observed_at=moment, value=value))
            records.append(
                Consumed(
                    topic=written.topic,
                    partition=0,
                    offset=offset,
                    key=written.key,
                    value=written.value,
                    headers=written.headers,
                )
            )
        return dict(self.archiving.apply(records))

    def run(self, cutoff: datetime) -> tuple[datetime, dict[int, float]]:
        """A batch run; the generation's as_of, and each cell's prediction for an hour ahead."""
        now = utc_now()
        made = plan(self.pipeline, self.settings, run_key=f"{cutoff} {now}", cutoff=cutoff, now=now)
        assert gate_features(self.pipeline, self.settings, made).failing == {}
        for shard in made.shards:
            assert score_shard(self.pipeline, self.settings, made, shard).quarantined == {}
        publish(self.pipeline, self.settings, made, now=now)
        with PostgresStore(self.settings.need("postgres_url")) as store:
            manifest = store.manifest(self.pipeline.name, made.generation)
            blocks = store.blocks(self.pipeline, made.generation, list(range(self.pipeline.partitions.count)))
        found = {}
        for entry in manifest.values():
            block = decode(blocks[entry.block_hash])
            found |= {int(key): (block.row(int(key)) or {})["t2m_1h"] for key in block.keys}
        return made.moment, found


@pytest.fixture(scope="module")
def world(postgres_url: str, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> World:
    state = tmp_path_factory.mktemp("archive")
    hours = HISTORY_HOURS + 6
    moments = [THIRTEEN - back * HOUR for back in reversed(range(hours))]
    pq.write_table(
        pa.table(
            {
                "cell_id": pa.array(np.tile(np.arange(GRID.cells), hours)),
                "observed_at": pa.array(np.repeat(moments, GRID.cells).tolist(), pa.timestamp("us", tz="UTC")),
                "t2m": pa.array(np.repeat([280.0 + back % 7 for back in range(hours)], GRID.cells), pa.float32()),
            }
        ),
        state / "observed.parquet",
    )
    pipeline = tiny_pipeline(new_name())
    settings = load_settings(
        state_dir=state,
        postgres_url=postgres_url,
        redis_url=redis_url,
        source_data=f"{pipeline.name}={state}/observed.parquet",
    )
    migrate(postgres_url, [pipeline])
    register_model(settings, pipeline, 0.0)
    own = settings.features_dir / pipeline.name
    own.mkdir(parents=True)
    (settings.features_dir / "weather").symlink_to(own)  # which the Feast definitions name
    apply(settings)  # the registry may know these views over files of another test
    archiving = Archiving(pipeline, partial(open_archive, pipeline, settings), observation_row, Report("archive"))
    return World(pipeline, settings, archiving)


def test_the_run_of_fourteen_uses_the_event_of_twenty_past_thirteen(world: World) -> None:
    as_of, before = world.run(THIRTEEN + HOUR)
    assert as_of == THIRTEEN
    assert len(set(before.values())) == 1
    source = before[0]
    done = world.observe(
        (7, THIRTEEN + timedelta(minutes=10), 291.0),
        (7, THIRTEEN + timedelta(minutes=20), 290.0),
        (8, THIRTEEN - timedelta(minutes=20), 299.0),  # before the source's own observation
        (9, THIRTEEN + timedelta(minutes=61), 298.0),  # after the run's cutoff
        (19, THIRTEEN + timedelta(minutes=60), 285.0),
    )
    assert done == {"archived": 5, "archived_already": 0, "foreign": 0}
    as_of, fourteen = world.run(THIRTEEN + HOUR)
    assert as_of == THIRTEEN  # no row speaks from anything older
    assert fourteen == before | {7: 291.0, 19: 286.0}
    assert world.run(THIRTEEN) == (THIRTEEN, dict.fromkeys(range(GRID.cells), source))
    assert world.run(THIRTEEN + timedelta(minutes=15))[1] == before | {7: 292.0}


def test_what_was_archived_once_is_not_again_and_a_correction_of_the_same_moment_wins(world: World) -> None:
    moment = THIRTEEN + timedelta(minutes=30)
    first, correction = (11, moment, 270.0), (11, moment, 271.0)
    assert world.observe(first, correction, first_offset=100)["archived"] == 2
    assert world.observe(first, correction, first_offset=100) == {"archived": 0, "archived_already": 2, "foreign": 0}
    assert world.run(THIRTEEN + HOUR)[1][11] == 272.0
    view = world.settings.features_dir / world.pipeline.name / "cell_observation"
    stored = [row for path in archived_files(view, None, utc_now()) for row in pq.ParquetFile(path).read().to_pylist()]
    assert len({row["kafka_offset"] for row in stored}) == len(stored) == 7


def test_the_event_is_seen_point_in_time_and_its_history_is_the_sources(world: World) -> None:
    moment = THIRTEEN + timedelta(minutes=40)
    world.observe((3, moment, 260.0), first_offset=200)

    def seen(at: datetime) -> tuple[float, float]:
        asked = pa.table({"cell_id": [3], "event_timestamp": pa.array([at], pa.timestamp("us", tz="UTC"))})
        found = historical(world.pipeline, world.settings, asked)
        return found["t2m"][0].as_py(), found["lag_1h"][0].as_py()

    before = seen(moment - timedelta(seconds=1))
    assert before[0] != 260.0
    assert seen(moment) == (260.0, before[1])


def test_an_emptied_online_store_gets_archived_observations_back(world: World) -> None:
    moment = THIRTEEN + timedelta(minutes=50)
    world.observe((4, moment, 265.0), first_offset=300)
    refresh(world.pipeline, world.settings, THIRTEEN, window=HOUR)
    without_registry = world.settings.model_copy(update={"postgres_url": None})
    materialize(world.pipeline, without_registry, utc_now())
    online = OnlineFeatures(world.pipeline, without_registry)
    assert online.read([4])["t2m"].to_pylist() == [265.0]


def test_a_new_ingest_leaves_the_archive_alone(world: World, tmp_path: Path) -> None:
    view = world.settings.features_dir / world.pipeline.name / "cell_observation"
    before = archived_files(view, None, utc_now())
    other = world.settings.model_copy(update={"source_data": "", "source_seed": 3})
    refresh(world.pipeline, other, THIRTEEN, window=HOUR)  # another source: all ingested files are made anew
    assert archived_files(view, None, utc_now()) == before != []
