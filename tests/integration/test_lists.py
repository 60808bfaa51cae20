"""Ranked lists through a batch run on real stores and Feast: from Parquet rows to what a lookup answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psycopg
import pyarrow.parquet as pq
import pytest

from almanac.clock import micros_of, utc_now
from almanac.errors import GateError
from almanac.list_blocks import decode_lists
from almanac.list_scoring import rank
from almanac.pipeline import Gate, Pipeline
from almanac.ranked import RankedList
from almanac.registry import Registry
from almanac.scoring import Scorer
from almanac.settings import Settings, load_settings
from features.materialize.run import materialize
from features.ranked import entities_of, items_at
from jobs.check import gate_features, gate_predictions
from jobs.checks.integrity import check_features
from jobs.plan import Plan, plan
from jobs.preview import preview
from jobs.publish import publish
from jobs.score import score_shard
from serving_cache.layout import view_name
from serving_cache.migrate import migrate
from serving_cache.postgres import PostgresStore
from serving_cache.redis import RedisStore
from tests.fresh import register_model
from tests.generations import library
from tests.lookups import environment, eventually, running_lookup
from tests.members import (
    BOOKS,
    GONE,
    INPUTS,
    MOMENT,
    WEIGHTS,
    history_of,
    together_rows,
    write_library,
    write_rows,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


@dataclass(frozen=True)
class Library:
    """The small library, ready to run: its rows on disk, a model, a migrated store."""

    settings: Settings
    pipeline: Pipeline
    folder: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, postgres_url: str, redis_url: str) -> Library:
    folder, pipeline = tmp_path_factory.mktemp("library"), library()
    file = write_library(folder, pipeline.name)
    settings = load_settings(
        state_dir=folder / "state", postgres_url=postgres_url, redis_url=redis_url, feature_repo=str(file)
    )
    migrate(postgres_url, [pipeline])
    register_model(settings.models_dir, pipeline, WEIGHTS, INPUTS)
    return Library(settings, pipeline, folder)


def run(made: Library, run_key: str, pipeline: Pipeline | None = None, *, anew: bool = False) -> Plan:
    """Every step of the DAG."""
    pipeline = pipeline or made.pipeline
    planned = plan(pipeline, made.settings, run_key=run_key, cutoff=utc_now(), now=utc_now(), anew=anew)
    report = gate_features(pipeline, made.settings, planned)
    for shard in planned.shards_without(report.settled):
        score_shard(pipeline, made.settings, planned, shard)
    gate_predictions(pipeline, made.settings, planned)
    publish(pipeline, made.settings, planned, now=utc_now())
    return planned


def served(made: Library, cache: RedisStore) -> dict[str, RankedList]:
    """Every member's list, as Redis has it."""
    pointer = cache.pointer(made.pipeline.name)
    assert pointer is not None
    entries = cache.manifest(made.pipeline.name, pointer.generation.generation).values()
    blocks = [decode_lists(data) for data in cache.blocks(made.pipeline.name, [e.block_hash for e in entries]).values()]
    found = {key.decode(): block.row(key.decode()) for block in blocks for key in block.keys.tolist()}
    return {key: row for key, row in found.items() if row is not None}


def expected_lists(made: Library) -> dict[str, RankedList]:
    """Every member's list, as the ranking gives it at once."""
    table = pq.read_table(made.folder / "history.parquet").drop_columns(["event_timestamp"])
    items = items_at(made.pipeline, made.settings, MOMENT)
    moments = np.full(table.num_rows, micros_of(MOMENT))
    scorer = Scorer.load(Registry(made.settings.models_dir).resolve(made.pipeline.model), made.pipeline)
    assert made.pipeline.ranking is not None
    expected = rank(entities_of(made.pipeline, table, items, moments), items, scorer, made.pipeline.ranking)
    return dict(zip(table["member"].to_pylist(), expected, strict=True))


def origins(store: PostgresStore, name: str) -> dict[int, int]:
    """Which generation scored each partition of the current one."""
    pointer = store.pointer(name)
    assert pointer is not None
    return {p: entry.origin for p, entry in store.manifest(name, pointer.generation.generation).items()}


def test_every_entity_has_the_list_that_the_ranking_gives(
    made: Library, store: PostgresStore, redis_url: str, postgres_url: str
) -> None:
    run(made, "first")
    with RedisStore(redis_url) as cache:
        lists = served(made, cache)
    assert lists == expected_lists(made)
    assert {len(one.items) for one in lists.values()} == {5}
    assert not any(GONE in one.items for one in lists.values())
    price = {book: 1 + number / 4 for number, book in enumerate(BOOKS)}
    assert all(tuple(map(price.get, one.items)) == one.attributes["price"] for one in lists.values())
    with psycopg.connect(postgres_url) as people:
        view = view_name(made.pipeline.name)
        rows = people.execute(f"SELECT member, items[1], scores[1]::float8, price[1]::float8 FROM {view}").fetchall()  # type: ignore[arg-type]
    assert {row[0]: row[1:] for row in rows} == {
        member: (one.items[0], one.scores[0], one.attributes["price"][0]) for member, one in lists.items()
    }
    record = store.pointer(made.pipeline.name)
    assert record is not None
    held = record.generation.default_list
    assert held is not None
    assert held.items == tuple(book for book in BOOKS[:9] if book != GONE)[:5]


def test_only_partitions_whose_inputs_changed_are_scored(made: Library, store: PostgresStore) -> None:
    if store.pointer(made.pipeline.name) is None:  # this test alone
        run(made, "before")
    again = run(made, "unchanged").generation
    assert again not in origins(store, made.pipeline.name).values()
    rows = pq.read_table(made.folder / "history.parquet").to_pylist()
    borrower = rows[3]["member"]
    rows[3] = history_of(borrower, MOMENT, BOOKS[20:25])
    write_rows(made.folder / "history.parquet", rows)
    bucket = made.pipeline.partitions.partition_of(borrower)
    asked = preview(made.pipeline, made.settings, cutoff=utc_now(), now=utc_now())
    assert [one.partition for one in asked.partitions if one.action == "score"] == [bucket]
    third = run(made, "one member borrowed")
    scored = {p for p, origin in origins(store, made.pipeline.name).items() if origin == third.generation}
    assert scored == {bucket}
    write_rows(made.folder / "together.parquet", together_rows(MOMENT, popular=BOOKS[10:19]))
    fourth = run(made, "others are popular")
    assert set(origins(store, made.pipeline.name).values()) == {fourth.generation}


def test_of_a_partition_that_changed_only_members_are_scored_whose_inputs_did(
    made: Library, store: PostgresStore, redis_url: str, people: psycopg.Connection
) -> None:
    pipeline = library(made.pipeline.name, changed_only=True)
    run(made, "remembered", pipeline, anew=True)
    rows = pq.read_table(made.folder / "history.parquet").to_pylist()

    def night(key: str, borrowers: Sequence[int], books: Sequence[str]) -> tuple[int, int]:
        """Some borrow; returns how many of how many members of a partition that changed were scored."""
        for place in borrowers:
            rows[place] = history_of(rows[place]["member"], MOMENT, books)
        write_rows(made.folder / "history.parquet", rows)
        found = store.stage_times(pipeline.name, run(made, key, pipeline).generation)
        score = [one for one in found if one.stage == "score"]
        return sum(one.rows - one.unchanged for one in score), sum(one.rows for one in score)

    def members(borrowers: Sequence[int]) -> int:
        buckets = {pipeline.partitions.partition_of(rows[place]["member"]) for place in borrowers}
        return sum(pipeline.partitions.partition_of(row["member"]) in buckets for row in rows)

    assert night("two of forty", (3, 20), BOOKS[15:19]) == (2, members((3, 20)))
    with RedisStore(redis_url) as cache:
        assert served(made, cache) == expected_lists(made)
        cache.clear(pipeline.name)  # the blocks of before come from Postgres then
    lost = pipeline.partitions.partition_of(rows[6]["member"])
    people.execute(
        "UPDATE entity_digests SET digests = 'nonsense' WHERE pipeline = %s AND partition = %s", (pipeline.name, lost)
    )
    borrowers = [place for place in (6, 7, 8) if pipeline.partitions.partition_of(rows[place]["member"]) != lost]
    scored, every = night("without redis, and some digests lost", [6, *borrowers], BOOKS[7:9])
    assert (scored, every) == (members((6,)) + len(borrowers), members([6, *borrowers]))
    with RedisStore(redis_url) as cache:
        assert served(made, cache) == expected_lists(made)


def test_a_partition_with_a_hole_in_its_features_is_quarantined_alone(made: Library, store: PostgresStore) -> None:
    rows = pq.read_table(made.folder / "history.parquet").to_pylist()
    whole = [dict(row) for row in rows]
    rows[0]["visits"] = None
    write_rows(made.folder / "history.parquet", rows)
    pipeline = library(made.pipeline.name, coverage_min=0.5)
    planned = plan(pipeline, made.settings, run_key="hole", cutoff=utc_now(), now=utc_now())
    report = gate_features(pipeline, made.settings, planned)
    results = [score_shard(pipeline, made.settings, planned, s) for s in planned.shards_without(report.settled)]
    refused = {part: reason for result in results for part, reason in result.quarantined.items()}
    bucket = pipeline.partitions.partition_of(rows[0]["member"])
    assert set(refused) == {bucket}
    assert "feature visits is missing in 1 of" in refused[bucket]
    write_rows(made.folder / "history.parquet", whole)


def test_materialization_brings_entities_and_items_and_numbers_are_checked(made: Library) -> None:
    assert materialize(made.pipeline, made.settings, MOMENT) == 40 + len(BOOKS) + len([*BOOKS, "*"])
    assert materialize(made.pipeline, made.settings, MOMENT) == 0
    checked = check_features(made.pipeline, made.settings, now=utc_now())
    assert [(one.feature, one.skew and (one.skew.compared, one.skew.unequal)) for one in checked.features] == [
        ("visits", (40, 0))
    ]


def test_the_gate_on_predictions_sees_how_long_lists_are(made: Library) -> None:
    bounds = {"column": "items", "min_value": 6}
    pipeline = library(
        made.pipeline.name,
        gates=(Gate(on="predictions", expectation="expect_column_values_to_be_between", kwargs=bounds),),
    )
    with pytest.raises(GateError, match="4 of 4 partitions fail"):
        run(made, "short lists", pipeline)


def test_a_lookup_answers_with_the_list_or_says_that_it_is_the_default(
    made: Library, tmp_path: Path, postgres_url: str, redis_url: str
) -> None:
    run(made, "looked up")
    with RedisStore(redis_url) as cache:
        lists = served(made, cache)
    member, expected = next(iter(lists.items()))
    path = tmp_path / "declarations.py"
    path.write_text(f"from tests.generations import library\nmine = library({made.pipeline.name!r})\n")
    base = f"/v1/{made.pipeline.name}/entities"
    for redis, place in ((redis_url, "redis"), ("redis://127.0.0.1:1", "postgres")):
        variables = environment(tmp_path, path, postgres=postgres_url, redis=redis)
        with running_lookup(variables, tmp_path / f"{place}.log") as client:
            answer = eventually(client, f"{base}/{member}", place)
            output = answer["outputs"]["score"]  # type: ignore[index]
            assert set(output) == {"items", "unit", "valid_at", "verdict"}
            shown = [(i["item"], np.float32(i["score"]), i["attributes"]["price"]) for i in output["items"]]
            assert shown == list(
                zip(expected.items[:3], map(np.float32, expected.scores), expected.attributes["price"], strict=False)
            )
            assert (answer["source"], answer["rung"]) == ("batch", 1)
            unknown = client.get(f"{base}/nobody").json()
            assert (unknown["source"], unknown["verdict"], unknown["as_of"]) == ("default", "missing", None)
            assert [i["item"] for i in unknown["outputs"]["score"]["items"]] == BOOKS[10:13]
            assert "has no prediction of this entity" in unknown["reason"]
            assert client.get(f"{base}/nobody?max_stale=1d").status_code in (404, 503)
