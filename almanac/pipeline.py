"""The declaration of a pipeline: one object that batch, stream and lookup all read.

This file imports neither Airflow nor Feast nor Kafka, so that a declaration
costs DAG parsing and the lookup process next to nothing. Everything is checked
where it is written; a `DeclarationError` says what to change.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from almanac.checking import need_a, need_all, need_duration, need_name, need_number, need_pair, need_range
from almanac.errors import DeclarationError
from almanac.events_declared import Lines as Lines
from almanac.events_declared import Stream as Stream
from almanac.events_declared import ValueRange as ValueRange
from almanac.fresh_declared import Fresh as Fresh
from almanac.gates import Gate as Gate
from almanac.integrity import Integrity as Integrity
from almanac.interactions import Interactions as Interactions
from almanac.jumps import Jump as Jump
from almanac.partitioning import Buckets, Grid, Partitioning
from almanac.ranking_declared import Ranking as Ranking
from almanac.ranking_declared import check_default, check_ranking
from almanac.schedule import check_schedule
from almanac.training import Training as Training

if TYPE_CHECKING:
    from almanac.end_manifest import EndManifest

_OF_A_GENERATION = re.compile(r".*_g[0-9]+")
MODEL = re.compile(r"[a-z][a-z0-9_]{0,39}@[a-z][a-z0-9_-]{0,39}")
GRIB_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_.:]{0,63}")
OUTPUTS_MAX = 64
SHARD_PARTITIONS = 12
"""Partitions of a shard before anything was measured."""

PREVIOUS_KEPT_MIN = timedelta(hours=1)
ROLLED_BACK_KEPT_MIN = timedelta(days=1)


def minutes(count: float) -> timedelta:
    """A duration in minutes."""
    return timedelta(minutes=count)


def hours(count: float) -> timedelta:
    """A duration in hours."""
    return timedelta(hours=count)


def days(count: float) -> timedelta:
    """A duration in days."""
    return timedelta(days=count)


@dataclass(frozen=True, kw_only=True)
class Output:
    """One number that the model predicts; for a forecast, with its horizon."""

    name: str
    unit: str = ""
    horizon: timedelta | None = None

    def __post_init__(self) -> None:
        need_name("Output.name", self.name)
        need_a(f"output {self.name}: unit", self.unit, str, "give text such as 'K'")
        if self.horizon is not None:
            need_duration(f"output {self.name}: horizon", self.horizon)
        if self.horizon is not None and self.horizon <= timedelta(0):
            raise DeclarationError(f"output {self.name}: horizon is {self.horizon}: give a duration above 0")


def horizons(variable: str, *, hours: tuple[int, ...], unit: str = "") -> tuple[Output, ...]:
    """Outputs of a forecast: `horizons("t2m", hours=(1, 6))` gives `t2m_1h` and `t2m_6h`.

    Raises:
        DeclarationError: `hours` is not a tuple of whole numbers of at least 1.
    """
    if not isinstance(hours, tuple | list):
        raise DeclarationError(f"horizons(hours={hours!r}): give a tuple of whole hours, such as (1, 6)")
    for hour in hours:
        need_number(f"horizons(hours={hours!r}): {hour!r}", hour, 1, math.inf, whole=True)
    return tuple(Output(name=f"{variable}_{h}h", unit=unit, horizon=timedelta(hours=h)) for h in hours)


@dataclass(frozen=True, kw_only=True)
class Freshness:
    """How long a prediction counts as fresh, and how long it may be used at all."""

    fresh_for: timedelta
    usable_for: timedelta

    def __post_init__(self) -> None:
        need_duration("Freshness.fresh_for", self.fresh_for)
        need_duration("Freshness.usable_for", self.usable_for)
        if self.fresh_for <= timedelta(0):
            raise DeclarationError(f"Freshness.fresh_for is {self.fresh_for}: give a duration above 0")
        if self.usable_for < self.fresh_for:
            raise DeclarationError(
                f"Freshness.usable_for ({self.usable_for}) is shorter than fresh_for ({self.fresh_for}): "
                "swap or lengthen it"
            )


@dataclass(frozen=True, kw_only=True)
class GridObservations:
    """Where a grid pipeline's features come from: one observed variable, hourly, a value per cell.

    Args:
        variable: name of the observed value, in events and feature views.
        unit: its unit.
        valid_range: least and greatest value that can be true; an event outside is refused.
        prefer: a GRIB key and its value, such as `("expver", "0001")`: of unequal fields of one hour, which counts.
            None refuses a file that has such.
    """

    variable: str
    unit: str
    valid_range: tuple[float, float]
    prefer: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        need_name("GridObservations.variable", self.variable)
        need_range("GridObservations.valid_range", self.valid_range)
        if self.prefer is not None:
            need_pair("GridObservations.prefer", self.prefer, 'a GRIB key and its value, such as ("expver", "0001")')
            need_name("GridObservations.prefer: the key", self.prefer[0], GRIB_KEY)


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """One declared prediction pipeline.

    Args:
        name: used in tables, keys, topics and the DAG's id.
        entity: Feast join key of what a prediction is about.
        partitions: `Grid` or `Buckets`.
        outputs: what the model predicts, in the model's order.
        features: name of a Feast FeatureService.
        model: `<name>@<alias>` in the registry.
        schedule: cron expression in UTC.
        freshness: when an answer is fresh, stale, expired.
        source: how observations become offline features; None when they are kept up elsewhere.
        stream: the events' topic; None for a pipeline without a stream.
        fresh: fresh computation at a lookup; None for a pipeline that answers only with what was made beforehand.
        gates: expectations before scoring and before publishing.
        ranking: the one output is the score of an item, and a prediction a ranked list; None for numbers.
        default: last rung of the ladder: a value per output, `ANY_ITEM` where lists are ranked; None for no default.
        coverage_min: least share of partitions a generation must cover, 0 to 1.
        generations_kept: whole generations kept besides the current one.
        previous_kept: how long a generation is kept at least once it is no longer current.
        rolled_back_kept: how long one is kept that was rolled back.
        jump: how far a generation may differ from the one before, and whether it is refused then.
        may_publish: asked with a generation's end manifest and the current one's (or None) before readers see it;
            a text that it returns is why not, and rejects the generation.
        shard_partitions: partitions that one Airflow task scores; None to have them cut by measured cost.
        changed_only: of a partition that changed, score the entities alone whose inputs did; the others keep what they
            have. It takes 8 bytes an entity in the record, 16 of lists, and pays where most stay as they are.
        training: how `almanac train` makes the model.
        integrity: how its features are checked.
        owner, description, tags: shown in the Airflow UI.

    Raises:
        DeclarationError: a field contradicts another; says which and what to change.
    """

    name: str
    entity: str
    partitions: Partitioning
    outputs: tuple[Output, ...]
    features: str
    model: str
    schedule: str
    freshness: Freshness
    source: GridObservations | Interactions | None = None
    stream: Stream | None = None
    fresh: Fresh | None = None
    gates: tuple[Gate, ...] = ()
    ranking: Ranking | None = None
    default: Mapping[str, float] | str | None = None
    coverage_min: float = 0.95
    generations_kept: int = 3
    previous_kept: timedelta = PREVIOUS_KEPT_MIN
    rolled_back_kept: timedelta = ROLLED_BACK_KEPT_MIN
    jump: Jump = field(default_factory=Jump)
    may_publish: Callable[[EndManifest, EndManifest | None], str | None] | None = field(default=None, repr=False)
    shard_partitions: int | None = None
    changed_only: bool = False
    training: Training = field(default_factory=Training)
    integrity: Integrity = field(default_factory=Integrity)
    owner: str = "almanac"
    description: str = ""
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        need_name("Pipeline.name", self.name)
        if _OF_A_GENERATION.fullmatch(self.name):
            raise DeclarationError(
                f"Pipeline.name is {self.name!r}: the tables of another pipeline's generations end in _g and a number: "
                "name it without, or put a word after it"
            )
        try:
            self._check()
        except DeclarationError as error:
            raise DeclarationError(f"pipeline {self.name}: {error}") from None

    def _check(self) -> None:
        need_name("entity", self.entity)
        need_name("features", self.features)
        need_name("model", self.model, MODEL)
        if not isinstance(self.partitions, Grid | Buckets):
            raise DeclarationError(f"partitions is {self.partitions!r}: give a Grid or Buckets")
        self._check_types()
        names = [output.name for output in self.outputs]
        if not 1 <= len(names) <= OUTPUTS_MAX:
            raise DeclarationError(f"outputs has {len(names)} entries: give 1 to {OUTPUTS_MAX}")
        if len(set(names)) != len(names):
            raise DeclarationError(f"outputs repeats a name ({', '.join(names)}): name each once")
        if self.entity in names:
            raise DeclarationError(f"output {self.entity!r} is also the entity: rename one")
        check_schedule("schedule", self.schedule)
        if not 0 < self.coverage_min <= 1:
            raise DeclarationError(f"coverage_min is {self.coverage_min}: give a share above 0 and up to 1")
        check_ranking(self)
        check_default(self)
        if self.source is not None and self.stream is not None and self.stream.values:
            raise DeclarationError("stream declares values, but events carry the source's variable: remove one of them")
        if self.source is None and self.stream is not None and not (self.stream.values or self.stream.lines):
            raise DeclarationError(
                "stream says nothing of what events carry: give Stream(values={'column': (least, greatest)}) "
                "with the columns of the pushed view, or a source"
            )
        if {self.entity, "observed_at"} & {*self.event_values, *([self.lines.name] if self.lines else [])}:
            raise DeclarationError(
                f"events cannot carry {self.entity!r} or 'observed_at' as a value: rename the column"
            )
        if self.source is not None and self.training.labels is not None:
            raise DeclarationError("training has labels, but the source is the truth: remove one of them")
        if isinstance(self.source, GridObservations) and not isinstance(self.partitions, Grid):
            raise DeclarationError("source is GridObservations but partitions is not a Grid: declare a Grid")
        if isinstance(self.source, Interactions) and not isinstance(self.partitions, Buckets):
            raise DeclarationError("source is Interactions but partitions is not Buckets: declare Buckets")
        shortest = min((o.horizon for o in self.outputs if o.horizon), default=None)
        if shortest is not None and self.freshness.fresh_for > max(o.horizon for o in self.outputs if o.horizon):
            raise DeclarationError(
                f"freshness.fresh_for ({self.freshness.fresh_for}) outlives every horizon: shorten it"
            )

    def _check_types(self) -> None:
        need_all("outputs", self.outputs, Output, "give a tuple of Output(…), or horizons(…)")
        need_all("gates", self.gates, Gate, "give a tuple of Gate(…)")
        need_all("tags", self.tags, str, "give a tuple of words, such as ('grid',)")
        for name, text in (("owner", self.owner), ("description", self.description)):
            need_a(name, text, str, "give text")
        need_a("freshness", self.freshness, Freshness, "give Freshness(fresh_for=…, usable_for=…)")
        sources = (GridObservations, Interactions, type(None))
        need_a("source", self.source, sources, "give GridObservations(…), Interactions(…), or leave it out")
        need_a("stream", self.stream, (Stream, type(None)), "give Stream(topic=…), or leave it out")
        need_a("training", self.training, Training, "give Training(…)")
        need_a("integrity", self.integrity, Integrity, "give Integrity(…)")
        need_number("coverage_min", self.coverage_min, 0, 1)
        need_number("generations_kept", self.generations_kept, 1, math.inf, whole=True)
        need_a("jump", self.jump, Jump, "give Jump(…)")
        for name, least in (("previous_kept", PREVIOUS_KEPT_MIN), ("rolled_back_kept", ROLLED_BACK_KEPT_MIN)):
            need_duration(name, getattr(self, name))
            if getattr(self, name) < least:
                raise DeclarationError(f"{name} is {getattr(self, name)}: give at least {least}")
        if self.may_publish is not None and not callable(self.may_publish):
            raise DeclarationError(f"may_publish is {self.may_publish!r}: give a function, or leave it out")
        if self.shard_partitions is not None:
            need_number("shard_partitions", self.shard_partitions, 1, math.inf, whole=True)
        need_a("changed_only", self.changed_only, bool, "give True or False")
        if self.default is not None:
            need_a("default", self.default, (Mapping, str), "give a dictionary of output to value, or leave it out")
        need_a("ranking", self.ranking, (Ranking, type(None)), "give Ranking(item=…, features=…), or leave it out")

    @property
    def event_values(self) -> Mapping[str, ValueRange]:
        """What an event carries besides entity, time and lines, each with what may be true of it."""
        if isinstance(self.source, GridObservations):
            return {self.source.variable: self.source.valid_range}
        return self.stream.values if self.stream is not None else {}

    @property
    def lines(self) -> Lines | None:
        """What the lines of an event carry; None of a pipeline whose events have none."""
        return self.stream.lines if self.stream is not None else None

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, in the model's order."""
        return tuple(output.name for output in self.outputs)

    @property
    def stored_columns(self) -> tuple[str, ...]:
        """Columns of a prediction in the record and in blocks, in order."""
        return self.output_names if self.ranking is None else self.ranking.stored_columns

    @property
    def model_name(self) -> str:
        """Registry name of the model."""
        return self.model.partition("@")[0]

    @property
    def model_alias(self) -> str:
        """Registry alias of the model."""
        return self.model.partition("@")[2]

    @property
    def predictions_topic(self) -> str:
        """Kafka topic of the stream's predictions."""
        return f"{self.name}.predictions"

    @property
    def features_topic(self) -> str:
        """Kafka topic of feature rows on their way to the online store."""
        return f"{self.name}.features"

    @property
    def dead_letter_topic(self) -> str:
        """Kafka topic of events that could not be handled."""
        return f"{self.name}.dead-letters"

    @property
    def asset_uri(self) -> str:
        """URI of the Airflow asset that publishing emits."""
        return f"almanac://{self.name}/predictions"

    @property
    def dag_tag(self) -> str:
        """The tag of every Airflow DAG that may move this pipeline's generation, features or model."""
        return f"pipeline:{self.name}"

    def shards(self) -> list[list[int]]:
        """All partitions, cut into the lists that one task scores each."""
        every = list(range(self.partitions.count))
        size = self.shard_partitions or SHARD_PARTITIONS
        return [every[start : start + size] for start in range(0, len(every), size)]

    def shard_label(self, partitions: list[int]) -> str:
        """What a person reads in the Airflow UI: `tile r0 c0 … tile r1 c4 (12)`."""
        first, last = self.partitions.label(partitions[0]), self.partitions.label(partitions[-1])
        return first if len(partitions) == 1 else f"{first} … {last} ({len(partitions)})"
