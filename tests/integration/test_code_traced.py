"""What runs of both pipelines execute, traced, is in the digests of the code: a module that they miss is named."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from importlib.metadata import distributions
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
from packaging.utils import canonicalize_name

from almanac.clock import utc_now
from almanac.code.following import code_of
from almanac.code.libraries import owners, versions
from almanac.interactions import Simulated
from almanac.partitioning import Grid
from almanac.pipeline import Pipeline, days
from almanac.settings import load_settings
from almanac.stack.servers import running_postgres
from features.definitions import places_of
from features.store import apply
from jobs.check import gate_features, gate_predictions
from jobs.digests import STEPS
from jobs.plan import plan
from jobs.score import score_shard
from pipelines.shop import shop
from serving_cache.migrate import migrate
from tests.acceptance.tiny_weather import weather
from tests.fresh import register_model

ROOT = Path(__file__).resolve().parents[2]
WEATHER = replace(weather, partitions=Grid(rows=4, cols=5, tile=4, north=52.5, west=-1.25, step=0.25))
SHOP = replace(
    shop,
    source=replace(shop.source, simulated=Simulated(entities=60, items=20, history=days(20), lines_per_entity=20)),
)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def postgres_url(server_dir: Path) -> Iterator[str]:
    """A Postgres of this file's own: the pipelines keep their names, and other tests have generations of these."""
    with running_postgres(server_dir / "postgres-traced") as url:
        yield url


@contextmanager
def traced(seen: set[CodeType], called: set[str]) -> Iterator[None]:
    """Collect the code that this thread and new ones run, and the modules whose machine code they call."""

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            seen.add(frame.f_code)
        elif event == "c_call":
            called.add(str(getattr(argument, "__module__", "") or type(argument.__self__).__module__))

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pipeline", "inputs", "weights"),
    [(WEATHER, ("t2m", "lag_1h"), (1.0, 0.0)), (SHOP, ("orders", "price"), (0.1, 0.1))],
    ids=["weather", "shop"],
)
def test_every_module_that_a_run_executes_is_in_the_digest(
    pipeline: Pipeline,
    inputs: tuple[str, ...],
    weights: tuple[float, ...],
    tmp_path: Path,
    postgres_url: str,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Where another test of this process imported Airflow's logs, Almanac's lines carry their fields, too.
    monkeypatch.delitem(sys.modules, "structlog.contextvars", raising=False)
    for name in ("great_expectations", "feast", "onnxruntime", "pandas"):
        import_module(name)  # their importing is slow when traced, and says nothing of what computes
    settings = load_settings(state_dir=tmp_path, postgres_url=postgres_url, redis_url=redis_url, source_data="")
    migrate(postgres_url, [pipeline])
    apply(settings)
    register_model(settings.models_dir, pipeline, weights, inputs)
    seen, called = set[CodeType](), set[str]()
    with traced(seen, called):
        now = utc_now()
        made = plan(pipeline, settings, run_key="traced", cutoff=now, now=now, anew=True)
        report = gate_features(pipeline, settings, made)
        for shard in made.shards_without(report.settled):
            score_shard(pipeline, settings, made, shard)
        gate_predictions(pipeline, settings, made)

    code = code_of(STEPS)
    files = {Path(one.co_filename) for one in seen}
    # What a Feast file defines is in the registry, whose definitions have a digest of their own.
    feast_files = places_of(settings)
    own = {
        file.relative_to(ROOT).with_suffix("").as_posix().removesuffix("/__init__").replace("/", ".")
        for file in files
        if file.is_relative_to(ROOT) and not file.is_relative_to(ROOT / ".venv") and file.suffix == ".py"
        and not file.is_relative_to(ROOT / "tests") and file.parent not in feast_files
    }  # fmt: skip
    assert {"jobs.score", "almanac.scoring", "jobs.gate", "features.asof.search"} <= own
    assert sorted(own - set(code.modules)) == [], "these ran, and are in no digest"

    ran = computed_by(files, called)
    assert {"numpy", "pyarrow", "onnxruntime"} <= ran
    assert sorted(ran - set(code.libraries)) == [], "these ran, and their versions are in no digest"


def computed_by(files: set[Path], called: set[str]) -> set[str]:
    """The distributions whose Python files or machine code ran, of those that Almanac requires.

    A name such as `google` belongs to several distributions: there the file decides. What finds modules when one is
    imported (pytest's and setuptools' hooks), with what it requires, computes nothing.
    """
    hooks = {(getattr(one, "__module__", "") or type(one).__module__).partition(".")[0] for one in sys.meta_path}
    below = [place.parts[place.parts.index("site-packages") + 1 :] for place in files if "site-packages" in place.parts]
    tops = {parts[0].removesuffix(".py") for parts in below} | {name.partition(".")[0] for name in called}
    alone = {names[0] for top in tops if len(names := sorted(set(owners().get(top, ())))) == 1}
    shared = {"/".join(parts) for parts in below if len(set(owners().get(parts[0], ()))) > 1}
    if shared:
        for one in distributions():
            if any(str(file) in shared for file in one.files or ()):
                alone.add(canonicalize_name(one.name))
    return (alone & set(versions(["almanac"]))) - {"almanac"} - set(versions(hooks))
