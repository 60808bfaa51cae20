"""Which models the stream scores with, and what becomes of an event that one of two cannot score."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from almanac import metrics
from almanac.errors import FeatureError, PredictionError, Unavailable, UnknownModel
from almanac.pipeline import Pipeline
from almanac.registry import Registry
from almanac.settings import Settings, load_settings
from serving_cache.records import GenerationRecord, Pointer, State
from streaming.answering import Answering, Standing
from streaming.duplicates import Duplicates
from streaming.handle import FEATURES_MISSING, PREDICTION_INVALID, Handled, Scoring, score, sort
from streaming.models import RECHECK_SECONDS, CurrentModels, Model
from streaming.report import RUNNING, Report
from tests.streams import register_model, tiny_pipeline
from tests.unit.test_stream_handle import NOW, TINY, SumOfInputs, features, observation_row, record


class Generation:
    """What is known of the generation that answers, as a test says."""

    def __init__(self, model: str | None = None, why: str = "") -> None:
        self.known = Standing(model, 0 if model is None else 1, why)

    def standing(self) -> Standing:
        return self.known

    def first(self) -> Standing:
        return self.known


class Following:
    """`CurrentModels` over a real registry, as a worker uses it."""

    def __init__(self, folder: Path, generation: Generation | None) -> None:
        self.pipeline: Pipeline = tiny_pipeline("tiny")
        self.settings: Settings = load_settings(state_dir=folder)
        self.report = Report("tiny worker")
        self.report.say(RUNNING)
        self.models = CurrentModels(self.pipeline, self.settings, self.report, generation)
        self.seconds = 0.0

    def register(self) -> str:
        """A new version, which the alias names at once."""
        return register_model(self.settings, self.pipeline, 0.0)

    def folder(self, version: int) -> Path:
        return self.settings.models_dir / "tiny" / f"v{version:04}"

    def used(self) -> list[tuple[str, bool]]:
        """The models in use once everything was looked at again, each with whether it answers."""
        self.seconds += RECHECK_SECONDS
        return [(model.id, model.answers) for model in self.models.get(self.seconds)]


def test_an_event_is_scored_once_while_the_alias_names_the_generations_model_and_by_both_while_it_does_not(
    tmp_path: Path,
) -> None:
    generation = Generation("tiny-v1")
    of = Following(tmp_path, generation)
    of.register()
    assert of.used() == [("tiny-v1", True)]
    of.register()  # `almanac models tiny --alias champion=2`, or a promotion
    assert of.used() == [("tiny-v1", True), ("tiny-v2", False)]
    assert metrics.STREAM_MODELS.labels("tiny")._value.get() == 2
    generation.known = Standing("tiny-v2", 2)  # its generation is published
    assert [model.id for model in of.models.get(of.seconds)] == ["tiny-v2"]  # at once, whatever the time
    generation.known = Standing("tiny-v1", 3)  # a rollback
    assert of.used() == [("tiny-v1", True), ("tiny-v2", False)]
    assert of.report.why_not_ready() is None


def test_while_nothing_is_published_the_alias_speaks(tmp_path: Path) -> None:
    of = Following(tmp_path, Generation())
    with pytest.raises(Unavailable, match="almanac train tiny"):
        of.used()
    of.register()
    assert of.used() == [("tiny-v1", True)]
    assert of.report.why_not_ready() is None


def test_a_generation_of_a_model_that_is_gone_is_said_and_the_alias_is_scored_with(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "streaming")
    of = Following(tmp_path, Generation("tiny-v1"))
    of.register()
    of.register()
    shutil.move(of.folder(1), tmp_path / "kept")
    assert of.used() == of.used() == [("tiny-v2", False)]
    said = of.report.why_not_ready()
    assert said is not None
    assert said.startswith("tiny worker: tiny-v1, which is to answer, is not scored with: model tiny has no version")
    assert caplog.text.count("keeps model tiny-v2: model tiny has no version") == 1
    assert metrics.STREAM_CORRECTS.labels("tiny")._value.get() == 0
    shutil.move(tmp_path / "kept", of.folder(1))
    assert of.used() == [("tiny-v1", True), ("tiny-v2", False)]
    assert of.report.why_not_ready() is None


def test_an_alias_that_names_what_does_not_load_stops_nothing(tmp_path: Path) -> None:
    of = Following(tmp_path, Generation("tiny-v1"))
    of.register()
    shutil.copytree(of.folder(1), of.folder(2))  # its manifest is of another version
    (of.settings.models_dir / "tiny" / "aliases.json").write_text('{"champion": 2}')
    assert of.used() == [("tiny-v1", True)]
    assert of.report.why_not_ready() is None
    (of.settings.models_dir / "tiny" / "aliases.json").write_text("not JSON")
    assert of.used() == [("tiny-v1", True)]


def test_a_version_for_other_features_is_left_out(tmp_path: Path) -> None:
    of = Following(tmp_path, Generation("tiny-v1"))
    register_model(of.settings, replace(of.pipeline, features="weather_v0"), 0.0)
    of.register()
    assert of.used() == [("tiny-v2", False)]
    assert "FeatureService" in (of.report.why_not_ready() or "")


def test_what_is_loaded_stays_in_use_when_its_file_changes(tmp_path: Path) -> None:
    of = Following(tmp_path, Generation("tiny-v1"))
    of.register()
    of.register()
    assert len(of.used()) == 2
    (of.folder(1) / "model.onnx").write_bytes(b"other")
    assert of.used() == [("tiny-v1", True), ("tiny-v2", False)]


def test_a_generation_by_another_model_than_the_declared_one_is_scored_with_that(tmp_path: Path) -> None:
    of = Following(tmp_path, Generation("other-v1"))
    of.register()
    register_model(of.settings, replace(of.pipeline, model="other@champion"), 0.0)
    assert of.used() == [("other-v1", True), ("tiny-v1", False)]


def test_an_unknown_pointer_is_said_and_what_was_known_counts(tmp_path: Path) -> None:
    generation = Generation("tiny-v1")
    of = Following(tmp_path, generation)
    of.register()
    of.register()
    assert len(of.used()) == 2
    generation.known = Standing("tiny-v1", 1, "Postgres did not answer; Redis did not answer")
    assert of.used() == [("tiny-v1", True), ("tiny-v2", False)]
    assert of.report.why_not_ready() == (
        "tiny worker: which generation answers cannot be read: Postgres did not answer; Redis did not answer"
    )


class Nowhere:
    """A store that does not answer."""

    def pointer(self, pipeline: str) -> None:
        raise Unavailable("it did not answer")

    def close(self) -> None:
        pass


def test_where_neither_store_answers_the_last_known_generation_counts(caplog: pytest.LogCaptureFixture) -> None:
    answering = Answering("tiny", Nowhere(), Nowhere(), lambda: pytest.fail("not opened"), Report("tiny pointer"))
    for _ in range(2):
        answering.look()
    assert answering.first() == Standing(None, 0, "it did not answer; it did not answer")
    assert caplog.text.count("which generation answers cannot be read, none is known yet") == 1
    assert metrics.STREAM_POINTER_KNOWN.labels("tiny")._value.get() == 0


class Pointing:
    """A store with a pointer, as a test says: epoch and the generation's model."""

    def __init__(self, epoch: int, model: str) -> None:
        self.epoch, self.model = epoch, model

    def pointer(self, pipeline: str) -> Pointer | None:
        if not self.epoch:
            return None
        generation = GenerationRecord(
            pipeline=pipeline, generation=self.epoch, run_key="run", cutoff=NOW, as_of=NOW, state=State.CURRENT,
            model=self.model, model_hash="", epoch=self.epoch, rows=1, coverage=1.0, reason="", partitioning="",
            outputs=(), clock_shift_seconds=0.0, created_at=NOW, published_at=NOW,
        )  # fmt: skip
        return Pointer(pipeline=pipeline, epoch=self.epoch, generation=generation, previous=None, moved_at=NOW)

    def close(self) -> None:
        pass


def followed(record: Any, copy: Any) -> Answering:
    answering = Answering("tiny", record, copy, lambda: pytest.fail("not opened"), Report("tiny pointer"))
    answering.look()
    return answering


@pytest.mark.parametrize(
    ("record", "copy", "model"),
    [
        (Pointing(7, "tiny-v2"), Pointing(6, "tiny-v1"), "tiny-v2"),  # Redis follows in a moment
        (Pointing(7, "tiny-v2"), Pointing(9, "tiny-v1"), "tiny-v1"),  # an older backup: lookups go by Redis
        (Pointing(0, ""), Pointing(9, "tiny-v1"), "tiny-v1"),
        (Pointing(7, "tiny-v2"), Nowhere(), "tiny-v2"),
        (Nowhere(), Pointing(6, "tiny-v1"), "tiny-v1"),
        (Pointing(0, ""), Pointing(0, ""), None),
        (Pointing(0, ""), Nowhere(), None),
    ],
)
def test_of_two_pointers_the_one_that_lookups_go_by_counts(record: Any, copy: Any, model: str | None) -> None:
    standing = followed(record, copy).first()
    assert (standing.model, standing.why) == (model, "")


def test_a_pointer_of_redis_that_is_further_back_than_what_is_known_does_not_count() -> None:
    record, copy = Pointing(7, "tiny-v2"), Pointing(6, "tiny-v1")
    answering = followed(record, copy)
    answering._record = Nowhere()
    answering.look()
    known = Standing("tiny-v2", 7, "it did not answer; Redis is at epoch 6, known is 7")
    assert answering.standing() == known
    copy.epoch = 0  # emptied
    answering.look()
    assert answering.standing().model == "tiny-v2"
    copy.epoch = 8  # a rollback by somebody who reaches both
    answering.look()
    assert answering.standing() == Standing("tiny-v1", 8)


class Doubled(SumOfInputs):
    """A second model: it needs one column more, and answers ten times as much."""

    inputs = ("t2m", "lag_1h", "minute", "lag_2h")

    def score(self, features: pa.Table) -> Mapping[str, np.ndarray[Any, Any]]:
        return {name: values * 10 for name, values in SumOfInputs().score(features).items()}


class Nan(SumOfInputs):
    """A model that answers NaN, whatever is asked."""

    def score(self, features: pa.Table) -> Mapping[str, np.ndarray[Any, Any]]:
        raise PredictionError("t2m_1h is NaN")


class Broken(SumOfInputs):
    """A model that fails in the library below."""

    def score(self, features: pa.Table) -> Mapping[str, np.ndarray[Any, Any]]:
        raise RuntimeError("indices element out of data bounds")


def scored(online: pa.Table, *scorers: Any, cells: tuple[int, ...] = (3,)) -> Handled:
    """Events of some cells, scored by some models; that features may come later fails the test."""
    models = [Model(f"tiny-v{at}", scorer, at == 1) for at, scorer in enumerate(scorers, start=1)]

    def wait(lacking: Mapping[Any, Any]) -> Mapping[Any, Any]:
        return dict.fromkeys(lacking, ("neighbourhood",))

    scoring = Scoring(models=models, observation_row=observation_row, given_up=wait)
    batch = sort([record(7 + at, cell=cell) for at, cell in enumerate(cells)], TINY, Duplicates(), NOW)
    return score(batch, online, TINY, scoring, NOW)


def told(handled: Handled) -> list[tuple[int, str, bool, float]]:
    """Entity, model, whether that answers, and the first output of each prediction, in order."""
    bodies = [json.loads(written.value or b"") for written in handled.predictions]
    return [(body["entity"], body["model"], body["answers"], body["values"]["t2m_1h"]) for body in bodies]


def with_lag_2h(online: pa.Table, *values: float | None) -> pa.Table:
    return online.append_column("lag_2h", pa.array(values, pa.float32()))


def test_each_event_is_scored_by_both_models() -> None:
    handled = scored(with_lag_2h(features(c3=1.0, c4=2.0), 0.0, 0.0), SumOfInputs(), Doubled(), cells=(3, 4))
    assert told(handled) == [
        (3, "tiny-v1", True, 290.0),
        (3, "tiny-v2", False, 2900.0),
        (4, "tiny-v1", True, 300.0),
        (4, "tiny-v2", False, 3000.0),
    ]
    assert (len(handled.features), handled.unscored, handled.failed) == (2, 0, {})
    sources = {json.dumps(json.loads(written.value or b"")["source"]) for written in handled.predictions}
    assert len(sources) == 2


@pytest.mark.parametrize("broken", [Nan(), Broken()])
def test_a_model_that_fails_does_not_stop_the_other(broken: Any) -> None:
    handled = scored(features(c3=1.0, c4=2.0), SumOfInputs(), broken, cells=(3, 4))
    assert [found[:2] for found in told(handled)] == [(3, "tiny-v1"), (4, "tiny-v1")]
    assert (handled.dead_letters, handled.unscored) == ((), 2)
    handled = scored(features(c3=1.0), broken, SumOfInputs())
    assert told(handled) == [(3, "tiny-v2", False, 290.0)]
    assert set(handled.failed) == ({"tiny-v1"} if isinstance(broken, Broken) else set())


def test_a_column_that_is_missing_for_one_model_does_not_stop_the_other() -> None:
    handled = scored(features(c3=1.0), SumOfInputs(), Doubled())
    assert told(handled) == [(3, "tiny-v1", True, 290.0)]
    assert "lag_2h" in handled.failed["tiny-v2"]
    with pytest.raises(FeatureError, match="lag_2h"):
        scored(features(c3=1.0), Doubled(), Doubled())


def test_an_event_is_a_dead_letter_only_if_no_model_can_score_it() -> None:
    online = with_lag_2h(features(c3=1.0, c4=None), None, None)
    handled = scored(online, SumOfInputs(), Doubled(), cells=(3, 4))
    assert told(handled) == [(3, "tiny-v1", True, 290.0)]
    assert dict(handled.reasons) == {FEATURES_MISSING: 1}
    assert [json.loads(letter.value or b"")["cell_id"] for letter in handled.dead_letters] == [4]
    handled = scored(features(c3=1.0), Nan(), Nan())
    assert dict(handled.reasons) == {PREDICTION_INVALID: 1}


def test_the_registry_finds_versions_by_their_id(tmp_path: Path) -> None:
    of = Following(tmp_path, None)
    of.register()
    of.register()
    registry = Registry(of.settings.models_dir)
    assert (registry.identify("tiny@champion"), registry.identify("tiny@1")) == ("tiny-v2", "tiny-v1")
    assert registry.version("tiny-v1").version == 1
    for wrong in ("tiny", "tiny-v", "tiny-v9", "tiny-vone"):
        with pytest.raises(UnknownModel, match="tiny"):
            registry.version(wrong)
