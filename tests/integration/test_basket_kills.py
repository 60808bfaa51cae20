"""Baskets, kills and two workers: every history is the fold of its events, and every list that of its history."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from almanac.clock import EPOCH, at_micros, micros_of, utc_now
from almanac.list_scoring import rank
from almanac.registry import Registry
from almanac.scoring import Scorer
from almanac.settings import Settings, load_settings
from features.interactions.fold import Event as Basket
from features.interactions.fold import advance
from features.rankable import entities_of, history_lists, placed
from serving_cache.migrate import migrate
from serving_cache.postgres import PostgresStore
from serving_cache.redis import RedisStore
from streaming.publish import publish
from tests.baskets import RANGE, PackedHistories, basket_pipeline, items, purchase, register_sums
from tests.generations import new_name
from tests.streams import BEGUN, ROOT, environment, eventually, read_topic

KILLS = 2
EVENTS = 150
CUSTOMERS = 6
STOP_SECONDS_MAX = 30
DECLARATION = """
from tests.baskets import basket_pipeline

baskets = basket_pipeline({name!r})
"""


@pytest.fixture
def settings(postgres_url: str, redis_url: str, kafka_bootstrap: str, tmp_path: Path) -> Settings:
    return load_settings(
        state_dir=tmp_path, postgres_url=postgres_url, redis_url=redis_url, kafka_bootstrap=kafka_bootstrap
    )


@contextmanager
def child(variables: dict[str, str], name: str, log: Path, instance: str = "0") -> Iterator[subprocess.Popen[bytes]]:
    """The killable process."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.basket_child", name, instance],
            env=variables, cwd=ROOT, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def drawn(dice: random.Random) -> list[tuple[str, list[tuple[str, float, float]], datetime]]:
    """Baskets of some customers, out of order, some of them twice."""
    begin = utc_now() - timedelta(hours=6)
    found = []
    for number in range(EVENTS):
        lines = [(dice.choice(RANGE), float(dice.randint(1, 5)), dice.randint(50, 900) / 100) for _ in range(2)]
        found.append((f"c{dice.randrange(CUSTOMERS)}", list(dict.fromkeys(lines)), begin + timedelta(seconds=number)))
    for place in range(0, EVENTS - 5, 5):  # a little out of order: a history knows its newest 64 events
        part = found[place : place + 5]
        dice.shuffle(part)
        found[place : place + 5] = part
    return found + dice.sample(found[-20:], 5)


@pytest.mark.slow
def test_after_kills_and_with_a_second_worker_every_history_is_the_fold_of_its_events(
    settings: Settings, tmp_path: Path
) -> None:
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    dice = random.Random(seed)
    pipeline = basket_pipeline(new_name())
    migrate(settings.need("postgres_url"), [pipeline])
    model = register_sums(settings, pipeline)
    variables = environment(settings, pipeline.name, DECLARATION)
    sent = drawn(dice)
    publish([purchase(*each) for each in sent], pipeline, settings)
    log = tmp_path / "child.log"

    def predicted() -> int:
        return len(read_topic(settings, pipeline.predictions_topic))

    for kill in range(KILLS):
        before = predicted()
        with child(variables, pipeline.name, log) as process:
            eventually(lambda: predicted() > before or before >= EVENTS, log.read_text)  # noqa: B023
            time.sleep(dice.uniform(0, 0.3))
            process.send_signal(signal.SIGKILL)
        assert kill < KILLS
    with (
        child(variables, pipeline.name, log) as first,
        child(variables, pipeline.name, log, "1") as second,
        PostgresStore(settings.need("postgres_url")) as postgres,
    ):
        eventually(lambda: predicted() >= EVENTS, log.read_text)
        expected = folded(sent)
        store = PackedHistories(pipeline, settings)

        def stored() -> dict[str, Any]:
            return {entity: held and held[0] for entity, held in store.read(list(expected)).items()}

        eventually(lambda: stored() == expected, lambda: f"{stored()} is not {expected}; {log.read_text()}")
        scorer = Scorer.load(Registry(settings.models_dir).resolve(pipeline.model), pipeline)
        lists = listed(pipeline, expected, scorer)

        def overlays() -> dict[str, Any]:
            return {o.entity: (o.as_of, o.values["score"]) for o in postgres.overlays(pipeline.name, model, EPOCH)}

        eventually(lambda: overlays() == lists, log.read_text)
        with RedisStore(settings.need("redis_url")) as redis:
            eventually(
                lambda: {e: redis.overlays(pipeline.name, e)[model].values["score"] for e in lists}
                == {e: found for e, (_, found) in lists.items()},
                log.read_text,
            )  # fmt: skip
        for process in (first, second):
            eventually(lambda: log.read_text().count(BEGUN) >= KILLS + 2, log.read_text)
            process.send_signal(signal.SIGTERM)
            assert process.wait(STOP_SECONDS_MAX) == 0, log.read_text()
    sources = [json.loads(r.value or b"")["source"] for r in read_topic(settings, pipeline.predictions_topic)]
    origins = [(source["partition"], source["offset"]) for source in sources]
    assert len(set(origins)) == len(origins) == EVENTS
    assert read_topic(settings, pipeline.dead_letter_topic) == []


def folded(sent: list[tuple[str, list[tuple[str, float, float]], datetime]]) -> dict[str, Any]:
    """Each customer's history."""
    found: dict[str, Any] = {}
    for customer, lines, moment in sent:
        basket = Basket(entity=customer, at=micros_of(moment), lines=tuple(lines))
        found[customer] = advance(found.get(customer), basket).row
    return found


def listed(pipeline: Any, histories: dict[str, Any], scorer: Scorer) -> dict[str, Any]:
    """Each customer's list as of the newest event, computed here."""
    columns, lists = history_lists(list(histories.values()))
    moments = np.array([row["basket_at"] for row in histories.values()], np.int64)
    entities = placed(entities_of(pipeline, list(histories), moments, columns, lists), items())
    as_of = [at_micros(moment) for moment in moments.tolist()]
    found = rank(entities, items(), scorer, pipeline.ranking)
    return dict(zip(histories, zip(as_of, found, strict=True), strict=True))
