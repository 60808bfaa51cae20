"""`almanac train` on a small simulated atmosphere, through Feast and with the registry in a real Postgres."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from almanac.challenger import Challenger, Judged
from almanac.clock import HOUR, parse_time
from almanac.errors import ModelError, SourceError, UsageError
from almanac.manifest import Description
from almanac.partitioning import Grid
from almanac.pipeline import Pipeline, Training, days
from almanac.registry import ModelVersion, Registry
from almanac.scoring import Scorer
from almanac.settings import Settings, load_settings
from jobs.training.convert import Fitted, Recipe, to_onnx
from jobs.training.evaluate import EXPECTED, golden_rows, prove
from jobs.training.promotion import promote, summary_of
from jobs.training.train import reference_for, train
from tests.acceptance.tiny_weather import weather as _tiny

tiny = replace(_tiny, training=replace(_tiny.training, challenger=None))
NOW = parse_time("2026-03-20T09:40:00Z")
LAST = parse_time("2026-03-20T09:00:00Z")


@dataclass(frozen=True)
class Trained:
    settings: Settings
    version: ModelVersion
    champion: ModelVersion
    steps: list[str]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, postgres_url: str) -> Trained:
    settings = load_settings(state_dir=tmp_path_factory.mktemp("train"), postgres_url=postgres_url)
    steps: list[str] = []
    version = train(tiny, settings, now=NOW, progress=steps.append)
    return Trained(settings, version, Registry(settings.models_dir).resolve(tiny.model), steps)


def test_the_version_is_registered_and_the_alias_names_it(trained: Trained) -> None:
    registry = Registry(trained.settings.models_dir)
    assert trained.champion == registry.resolve("weather@1") == trained.version
    assert trained.version.id == "weather-v1"
    manifest = trained.version.manifest
    assert set(manifest.files) == {"model.onnx", "golden.parquet", *(f"model-{o}.txt" for o in tiny.output_names)}
    assert manifest.outputs == tiny.output_names
    assert manifest.held_out.end == LAST
    assert manifest.held_out.end - manifest.held_out.start == days(2) - HOUR
    assert manifest.training.end < manifest.held_out.start
    assert manifest.rows == tiny.training.rows_max
    assert trained.steps[-1] == "registered weather-v1; weather@champion names it"


def test_the_metrics_are_those_of_every_cell_and_held_out_hour(trained: Trained) -> None:
    from features.sources import open_source

    values = open_source(tiny, trained.settings, now=NOW).window(LAST - days(10), LAST).values
    held_out = values[-48:]
    metrics = trained.version.manifest.metrics
    for output in tiny.output_names:
        ahead = int(output.removeprefix("t2m_").removesuffix("h"))
        now = np.abs(held_out - values[-48 - ahead : len(values) - ahead]).mean()
        yesterday = np.abs(held_out - values[-48 - 24 : -24]).mean()
        metric = metrics[output]
        assert metric.rows == held_out.size == 48 * 99
        assert metric.baselines["as_now"] == pytest.approx(now, rel=1e-4)
        assert metric.baselines["same_hour_yesterday"] == pytest.approx(yesterday, rel=1e-4)
    assert metrics["t2m_1h"].ratio < 1


def test_the_error_is_that_of_features_computed_without_feast(trained: Trained) -> None:
    from features.grid import HISTORY_HOURS, grid_features
    from features.sources import open_source

    assert isinstance(tiny.partitions, Grid)
    window = open_source(tiny, trained.settings, now=NOW).window(LAST - days(2) - 100 * HOUR, LAST)
    columns = grid_features(window.values, window["time"].values, tiny.partitions, "t2m")
    predicted = Scorer.load(trained.version, tiny).score({name: part.ravel() for name, part in columns.items()})
    observed = window.values[HISTORY_HOURS:]
    for output, values in predicted.items():
        ahead = int(output.removeprefix("t2m_").removesuffix("h"))
        forecasts = values.reshape(observed.shape)[len(observed) - 48 - ahead : len(observed) - ahead]
        error = np.abs(forecasts - observed[-48:]).mean()
        assert trained.version.manifest.metrics[output].mae == pytest.approx(error, rel=1e-4)


def test_golden_rows_hold_what_the_stored_text_answers(trained: Trained) -> None:
    import lightgbm
    import pyarrow as pa
    import pyarrow.parquet as pq

    from features.grid import differences
    from jobs.training.evaluate import as_matrix

    version = trained.version
    scorer = Scorer.load(version, tiny)
    parity = prove(scorer, version.read("golden.parquet"))
    assert parity == version.manifest.parity
    assert parity.difference_max <= parity.tolerance < 0.01
    assert parity.boundary_rows > 0
    assert parity.splits_reached > parity.splits / 2
    table = pq.read_table(pa.BufferReader(version.read("golden.parquet")))
    recipe = Recipe(inputs=scorer.inputs, differences=differences("t2m"))
    matrix = as_matrix(table.select(scorer.inputs))
    for output in tiny.output_names:
        booster = lightgbm.Booster(model_str=version.read(f"model-{output}.txt").decode())
        fitted = Fitted(output=output, booster=booster, reference=version.manifest.references[output])
        np.testing.assert_allclose(fitted.predict(recipe, matrix), table[EXPECTED + output].to_numpy(), atol=1e-9)


def test_an_event_moves_every_output_of_its_cell(trained: Trained) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    scorer = Scorer.load(trained.version, tiny)
    table = pq.read_table(pa.BufferReader(trained.version.read("golden.parquet"))).select(scorer.inputs)
    features = {name: table[name].to_numpy() for name in scorer.inputs}
    before = scorer.score(features)
    after = scorer.score(features | {"t2m": features["t2m"] + np.float32(3)})
    for output in tiny.output_names:
        assert (after[output] - before[output]).mean() > 0.3, output


CHALLENGED = replace(tiny, training=replace(tiny.training, challenger=Challenger()))


def test_the_same_seed_gives_the_same_model_which_is_no_better_than_the_champion(trained: Trained) -> None:
    again = train(CHALLENGED, trained.settings, now=NOW, progress=lambda step: None)
    assert (again.version, again.hash) == (2, trained.version.hash)
    assert again.manifest.metrics == trained.version.manifest.metrics
    said = again.manifest.judged
    assert said is not None
    assert not said.passed
    assert said.against_champion == pytest.approx(1)
    assert said.reasons[0] == "1.000 of weather-v1's, below 1 is needed"
    assert Registry(trained.settings.models_dir).aliases("weather") == {"champion": 1, "challenger": 2}
    assert summary_of(again)["reasons"] == list(said.reasons)
    refused = promote(CHALLENGED, trained.settings, 2)
    assert not refused.promoted
    assert "weather-v2 not promoted: 1.000 of weather-v1's" in refused.told
    assert "weather-v1 stays" in refused.told
    taken = promote(CHALLENGED, trained.settings, 2, overrule=True)
    assert taken.promoted
    assert promote(CHALLENGED, trained.settings, 2).told == "weather@champion names weather-v2 already"
    assert Registry(trained.settings.models_dir).resolve(tiny.model).version == 2


def test_a_challenger_that_passed_is_promoted_once_and_only_over_the_champion_it_was_compared_with(
    trained: Trained, tmp_path: Path
) -> None:
    settings = load_settings(state_dir=tmp_path)
    registry = Registry(settings.models_dir)
    files = {name: trained.version.read(name) for name in trained.version.manifest.files}
    given = {name: getattr(trained.version.manifest, name) for name in Description.__struct_fields__}

    def version(judged: Judged | None) -> int:
        return registry.register("weather", files, Description(**given | {"judged": judged}), now=NOW).version

    first = version(Judged(passed=True, reasons=("nothing serves yet",)))
    assert promote(CHALLENGED, settings, first).told == "weather-v1 promoted: nothing serves yet"
    better = Judged(passed=True, reasons=("0.900 of weather-v1's",), champion="weather-v1", against_champion=0.9)
    second, third = version(better), version(better)
    assert promote(CHALLENGED, settings, second).promoted
    late = promote(CHALLENGED, settings, third)
    assert not late.promoted
    assert "compared with weather-v1, but weather-v2 serves by now" in late.told
    blind = promote(CHALLENGED, settings, version(Judged(passed=True, reasons=("nothing serves yet",))))
    assert "compared with no model, but weather-v2 serves by now" in blind.told
    assert not promote(CHALLENGED, settings, version(None)).promoted
    assert registry.aliases("weather")["champion"] == second
    with pytest.raises(UsageError, match="declares no challenger"):
        promote(tiny, settings, second)


def test_disagreement_on_a_golden_row_is_refused(trained: Trained) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(pa.BufferReader(trained.version.read("golden.parquet")))
    name = EXPECTED + "t2m_12h"
    wrong = table[name].to_numpy().copy()
    wrong[100] += 0.01
    table = table.set_column(table.column_names.index(name), name, pa.array(wrong))
    sink = io.BytesIO()
    pq.write_table(table, sink)
    with pytest.raises(ModelError, match=r"differ by 0\.0\d+ in t2m_12h on a golden row"):
        prove(Scorer.load(trained.version, tiny), sink.getvalue())


def test_a_changed_model_is_refused(trained: Trained) -> None:
    version = train_copy(trained)
    path = version.path / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(ModelError, match=r"model\.onnx was changed after it was registered"):
        Registry(version.path.parents[1]).resolve(f"weather@{version.version}")


def train_copy(trained: Trained) -> ModelVersion:
    """The same files as a further version, for a test to spoil."""
    version = trained.version
    files = {name: version.read(name) for name in version.manifest.files}
    given = {name: getattr(version.manifest, name) for name in Description.__struct_fields__}
    return Registry(trained.settings.models_dir).register("weather", files, Description(**given), now=NOW)


@pytest.mark.parametrize(
    ("pipeline", "error", "message"),
    [
        (replace(tiny, source=None, stream=None), UsageError, "pipeline weather has nothing to train on"),
        (replace(tiny, training=Training(window=days(6), holdout=days(2))), SourceError, "too few to train weather"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    trained: Trained, pipeline: Pipeline, error: type[Exception], message: str
) -> None:
    before = len(Registry(trained.settings.models_dir).versions("weather"))
    with pytest.raises(error, match=message):
        train(pipeline, trained.settings, now=NOW, progress=lambda step: None)
    assert len(Registry(trained.settings.models_dir).versions("weather")) == before


def test_thresholds_between_neighbouring_float32_numbers_change_no_answer() -> None:
    import lightgbm
    import pyarrow as pa

    random = np.random.default_rng(3)
    # Neighbouring float32 numbers: half of the thresholds between them are not float32 themselves.
    steps = np.float32(280) + np.arange(40, dtype=np.float32) * np.float32(2**-15)
    inputs = np.column_stack([random.choice(steps, 4000) for _ in range(3)])
    target = (inputs[:, 0] - 280) * 2**15 + random.normal(size=4000)
    parameters = {"objective": "regression", "verbosity": -1, "num_threads": 1, "min_child_samples": 5}
    recipe = Recipe(inputs=("t2m", "a", "b"), differences=(("a", "b"),))
    booster = lightgbm.train(parameters, lightgbm.Dataset(recipe.apply(inputs), target), 40)
    fitted = [Fitted(output="t2m_1h", booster=booster, reference=reference_for("t2m", 1))]
    table = pa.table(dict(zip(recipe.inputs, inputs.T, strict=True)))
    scorer = Scorer.open(to_onnx(recipe, fitted), "test", entity="cell_id")
    assert prove(scorer, golden_rows(recipe, fitted, table, seed=1)).difference_max < 1e-4


def test_models_lists_and_moves_aliases(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from almanac import settings as settings_module
    from almanac.cli import main

    def run(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["models", *words])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    monkeypatch.setenv("ALMANAC_STATE_DIR", str(trained.settings.state_dir))
    settings_module.settings.cache_clear()
    try:
        code, out, _ = run("weather", "--alias", "challenger=1", "--json")
        assert code == 0
        first = json.loads(out)[0]
        assert first["id"] == "weather-v1"
        assert "challenger" in first["aliases"]
        assert first["metrics"]["t2m_6h"]["ratio"] == pytest.approx(trained.version.manifest.metrics["t2m_6h"].ratio)
        code, out, _ = run()
        assert code == 0
        assert "weather-v1" in out
        for words, message in ((("weather", "--alias", "x=99"), "no version or alias"), (("shop",), "no model 'shop'")):
            code, _, err = run(*words)
            assert code == 2
            assert message in err
            assert len(err.strip().splitlines()) == 1
    finally:
        settings_module.settings.cache_clear()


def test_the_folder_holds_no_pickle(trained: Trained) -> None:
    for path in Path(trained.version.path).iterdir():
        assert not path.read_bytes().startswith(b"\x80"), path.name
