"""`almanac train` of a model that ranks, on a small simulated crowd, through Feast's offline store."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from almanac.challenger import Challenger
from almanac.clock import DAY_MICROSECONDS, at_micros, utc_now
from almanac.errors import FeatureError, UsageError
from almanac.interactions import Interactions, Simulated
from almanac.list_scoring import rank
from almanac.manifest import Window
from almanac.pipeline import Training, days
from almanac.ragged import picked
from almanac.ranking import PAIR_COLUMNS
from almanac.registry import ModelVersion, Registry
from almanac.scoring import Scorer
from almanac.settings import Settings, load_settings
from features.ranked import NoItemYet, Taken, items_at, taken_between
from jobs.training.evaluate_lists import evaluate_lists, flattered, span_of
from jobs.training.promotion import promote
from jobs.training.ranker import learn_from, prepare
from jobs.training.ranker_data import BY_NIGHT, EACH_BASKET, each_basket, held_out_since, nightly, sample
from jobs.training.train import train
from pipelines.shop import shop

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")

NOW = utc_now()
SMALL = replace(
    shop,
    source=replace(shop.source, simulated=Simulated(entities=100, items=40, history=days(30), lines_per_entity=40)),
    training=Training(
        objective="lambdarank",
        window=days(14),
        holdout=days(4),
        rows_max=6_000,
        trees=15,
        leaves=7,
        challenger=Challenger(baseline_max=2.0, rows_min=10),
    ),
)


@dataclass(frozen=True)
class Trained:
    settings: Settings
    version: ModelVersion
    taken: Taken

    @property
    def since(self) -> int:
        return held_out_since(SMALL, int(self.taken.moments[-1]))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, postgres_url: str) -> Trained:
    settings = load_settings(state_dir=tmp_path_factory.mktemp("ranker"), postgres_url=postgres_url)
    version = train(SMALL, settings, now=NOW, progress=lambda step: None)
    newest = version.manifest.held_out
    assert newest is not None
    taken = taken_between(SMALL, settings, newest.end - SMALL.training.window, newest.end)
    return Trained(settings, version, taken)


def test_the_model_reads_the_entity_the_item_and_the_pair_and_is_measured_in_both_ways(trained: Trained) -> None:
    manifest = trained.version.manifest
    inputs = [column.name for column in manifest.inputs]
    assert {"orders_30d", "sold_30d", "price", *PAIR_COLUMNS} <= set(inputs)
    assert "available" not in inputs
    assert isinstance(manifest.training, Window)
    assert isinstance(manifest.held_out, Window)
    assert manifest.training.end < manifest.held_out.start
    assert set(manifest.lists) == {"nightly", "each_basket"}
    held_out = trained.taken.moments >= trained.since
    assert manifest.lists["each_basket"].rows == held_out.sum()
    keys = trained.taken.keys.take(np.flatnonzero(held_out)).to_pylist()
    assert manifest.lists["nightly"].rows == len(set(keys))
    assert manifest.lists["nightly"].ndcg > manifest.lists["nightly"].ndcg_baselines["popular"]
    assert Registry(trained.settings.models_dir).aliases("shop") == {"challenger": 1}


def test_recall_is_that_of_the_lists_that_would_be_served(trained: Trained) -> None:
    settings, held_out = trained.settings, np.flatnonzero(trained.taken.moments >= trained.since)
    assert SMALL.ranking is not None
    took: dict[str, set[str]] = {}
    for row in held_out.tolist():
        start, stop = trained.taken.items.offsets[row : row + 2]
        took.setdefault(trained.taken.keys[row].as_py(), set()).update(trained.taken.items.values[start:stop])
    some = Taken(
        keys=trained.taken.keys.take(held_out),
        moments=trained.taken.moments[held_out],
        items=picked(trained.taken.items, held_out)[1],
    )
    asked = nightly(SMALL, settings, some, trained.since)
    lists = rank(asked.entities, asked.items, Scorer.load(trained.version, SMALL), SMALL.ranking)
    served = dict(zip(asked.entities.keys, lists, strict=True))
    usable = asked.items.answerable("available")
    popular = [asked.items.keys[place] for place in asked.items.popular if place >= 0 and usable[place]]
    recalls = [
        len(truth & set(served[key].items[:10] if key in served else popular[:10])) / len(truth)
        for key, truth in took.items()
    ]
    assert trained.version.manifest.lists["nightly"].recall == pytest.approx(np.mean(recalls))


def test_nothing_is_learned_from_what_came_later(trained: Trained) -> None:
    chosen = sample(SMALL, trained.taken, int(trained.taken.moments[0]), trained.since)
    assert len(chosen) == SMALL.training.rows_max // 50
    assert trained.taken.moments[chosen].max() < trained.since
    np.testing.assert_array_equal(chosen, sample(SMALL, trained.taken, int(trained.taken.moments[0]), trained.since))
    days = np.unique(trained.taken.moments[chosen[-20:]] // DAY_MICROSECONDS)
    lists = each_basket(SMALL, trained.settings, trained.taken, chosen[-20:])
    for day, asked in zip(days.tolist(), lists, strict=True):
        times = asked.entities.lists["bought_at"]
        owner = np.repeat(np.arange(len(times)), times.lengths)
        assert (times.values <= asked.entities.moments[owner]).all()
        assert asked.entities.moments.max() < (day + 1) * DAY_MICROSECONDS
        before = items_at(SMALL, trained.settings, at_micros(day * DAY_MICROSECONDS))
        assert before.keys == asked.items.keys


def test_a_history_that_is_younger_than_the_window_is_learned_from_its_second_day_on(
    tmp_path: Path, postgres_url: str
) -> None:
    assert isinstance(SMALL.source, Interactions)
    young = Simulated(entities=60, items=30, history=days(12), lines_per_entity=30)
    pipeline = replace(SMALL, source=replace(SMALL.source, simulated=young))
    settings = load_settings(state_dir=tmp_path, postgres_url=postgres_url)
    taken = prepare(pipeline, settings, now=NOW, progress=lambda step: None)
    first = int(taken.moments[0])
    with pytest.raises(NoItemYet, match="knows no item at"):
        items_at(pipeline, settings, at_micros(first // DAY_MICROSECONDS * DAY_MICROSECONDS))
    since = held_out_since(pipeline, int(taken.moments[-1]))
    chosen = sample(pipeline, taken, first, since)
    lists = list(each_basket(pipeline, settings, taken, chosen))
    assert len(lists) == len(np.unique(taken.moments[chosen] // DAY_MICROSECONDS)) - 1
    assert len(learn_from(pipeline, settings, taken, since).sizes) > 10


def test_a_registered_model_is_measured_again_with_the_same_figures(
    trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    def progress(step: str) -> None:
        return None

    settings = trained.settings
    found = evaluate_lists(SMALL, settings, model="shop@1", holdout=None, now=NOW, progress=progress)
    by_night = found.lists[BY_NIGHT]
    assert found.lists == {**trained.version.manifest.lists, BY_NIGHT: by_night}
    assert by_night.rows == found.lists[EACH_BASKET].rows
    assert found.warning == ""
    assert flattered(trained.version, found.start) == ""
    assert "flatters it" in flattered(trained.version, found.start - days(2))
    assert json.loads(json.dumps(found.as_dict()))["lists"]["nightly"]["rows"] == found.lists["nightly"].rows
    promoted = promote(SMALL, settings, 1)
    assert promoted.promoted
    from jobs.training.models_cli import print_lists, print_metrics

    print_metrics(trained.version)
    print_lists(found.model_id, found.lists, found.start, found.end)
    shown = capsys.readouterr().out
    assert "bought again" in shown
    assert f"{trained.version.manifest.lists['each_basket'].recall:.4f}" in shown


def test_what_ranks_nothing_is_not_measured(trained: Trained) -> None:
    plain = replace(SMALL, ranking=None, default=None)
    with pytest.raises(UsageError, match="shop ranks nothing"):
        evaluate_lists(plain, trained.settings, model="", holdout=None, now=NOW, progress=lambda step: None)


@pytest.mark.parametrize(("text", "span"), [("30d", days(30)), ("48h", timedelta(hours=48))])
def test_a_holdout_is_days_or_hours(text: str, span: timedelta) -> None:
    assert span_of(text) == span


@pytest.mark.parametrize("text", ["", "30", "12h", "0d", "-3d", "1w", "9999999d"])
def test_a_holdout_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="give 30d or 720h"):
        span_of(text)


def test_too_little_to_learn_from_is_said(trained: Trained) -> None:
    short = replace(SMALL, training=replace(SMALL.training, rows_max=500))
    with pytest.raises(FeatureError, match="lists before the held-out time a candidate item was taken, 50 are needed"):
        learn_from(short, trained.settings, trained.taken, trained.since)
