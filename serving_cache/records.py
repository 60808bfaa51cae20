"""What the generation store reads and writes: plain records, no I/O.

Both stores, Postgres and Redis, return these same records. Times are aware UTC.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec

from almanac.decisions import Sequence
from almanac.generation_states import State as State
from almanac.list_blocks import AnyBlock
from almanac.ranked import RankedList, Value, need_finite


class GenerationRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One generation, as the store knows it.

    Args:
        run_key: names the run that made it.
        cutoff: the moment the run speaks for; as_of: the data time of its newest observation or feature.
        model: the model version's id, such as `bikes-v3`; model_hash: SHA-256 of its file.
        epoch: the pointer's epoch when this generation last became current; None if it never did.
        rows: predictions readers see in it, carried-forward ones included.
        coverage: share of its partitions that this run itself covered, 0 to 1.
        partitioning: the declaration's partitioning when it was made; a reader with another one must not use it.
        outputs: columns of its blocks, in order.
        clock_shift_seconds: how far a replayed file's clock was moved; 0 for real time.
        dropped_at: when retention dropped its rows; None while they are there.
        left_at: when it last ceased to be current, or was rolled back.
        alert: what was unusual about it when it was published; empty if nothing was.
        default_list: what entities without a list are answered with; None where it holds none.
    """

    pipeline: str
    generation: int
    run_key: str
    cutoff: datetime
    as_of: datetime
    state: State
    model: str
    model_hash: str
    epoch: int | None
    rows: int
    coverage: float
    reason: str
    partitioning: str
    outputs: tuple[str, ...]
    clock_shift_seconds: float
    created_at: datetime
    published_at: datetime | None
    dropped_at: datetime | None = None
    left_at: datetime | None = None
    alert: str = ""
    default_list: RankedList | None = None


class Pointer(msgspec.Struct, frozen=True, kw_only=True):
    """Which generation readers read. `epoch` grows with each move, rollback included."""

    pipeline: str
    epoch: int
    generation: GenerationRecord
    previous: GenerationRecord | None
    moved_at: datetime


class ManifestEntry(msgspec.Struct, frozen=True, kw_only=True):
    """Which block holds one partition of a generation.

    Args:
        origin: the generation whose run wrote the rows; another one's when carried forward.
        model: the model version that made the rows: the origin's.
        reason: empty, or why the partition was carried forward.
    """

    partition: int
    origin: int
    block_hash: str
    rows: int
    as_of: datetime
    computed_at: datetime
    model: str
    reason: str = ""


FRESH_TOPIC = ""
"""The topic of overlays that a lookup computed. It sorts below every real topic, so that of two overlays with one
as_of the stream's wins, whichever came first."""


def incarnate(topic: str, incarnation: int) -> str:
    """A topic as overlays name it: a later incarnation of it sorts above an earlier one, whatever its offsets.

    Names of topics begin with neither `~` nor anything above it, so one without an incarnation sorts below these.

    Args:
        incarnation: microseconds, see `streaming.placement.incarnation_of`; 0 of one that is not known.
    """
    return f"~{incarnation:016d}~{topic}" if incarnation else topic


class OverlayRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One entity's prediction from the stream, or from a fresh computation at a lookup.

    Args:
        entity: the entity's key as text, such as `"17"`.
        topic, kafka_partition, kafka_offset: where its event stood, the topic as `incarnate` names it; `FRESH_TOPIC`,
            0, 0 for a fresh computation.
        values: output name to value: a number or a list.

    Raises:
        PredictionError: a value is NaN or infinite.
    """

    entity: str
    model: str
    as_of: datetime
    topic: str
    kafka_partition: int
    kafka_offset: int
    values: dict[str, Value]
    computed_at: datetime

    def __post_init__(self) -> None:
        need_finite(f"overlay of entity {self.entity} by {self.model}", self.values)

    @property
    def is_fresh(self) -> bool:
        """Whether a lookup computed it, and not the stream."""
        return self.topic == FRESH_TOPIC

    @property
    def sequence(self) -> Sequence:
        """What decides which of two overlays of one entity and model is newer."""
        return (self.as_of, self.topic, self.kafka_partition, self.kafka_offset)


@dataclass(frozen=True, kw_only=True)
class GenerationStart:
    """What a batch run knows when it opens its generation.

    Args:
        run_key: names the run; the same key again resumes its unfinished generation.
        clock_shift: how far a replayed file's clock was moved.
        partitions: every partition the generation should cover.
        code_digest: of the code and the declaration; empty if nothing is to be carried forward because of it.
        source_digest: of everything the features are read from; empty if that cannot be told.
        backfill: made for the past: archived, whatever readers have.
        default_list: what entities without a list are answered with, where lists are ranked and a default is declared.
    """

    run_key: str
    cutoff: datetime
    as_of: datetime
    model: str
    model_hash: str
    clock_shift: timedelta
    partitions: tuple[int, ...]
    code_digest: str = ""
    source_digest: str = ""
    backfill: bool = False
    default_list: RankedList | None = None


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """The right to write to one generation, until a greater token is handed out."""

    pipeline: str
    generation: int
    token: int


@dataclass(frozen=True, kw_only=True)
class StagedPartition:
    """One partition's predictions on their way into a generation.

    Args:
        input_digest: of the features that they were made from; empty if not known.
        entity_digests: of what each entity was scored from, for `jobs/changed.py`; empty if not known.
    """

    partition: int
    block: AnyBlock
    as_of: datetime
    computed_at: datetime
    input_digest: str = ""
    entity_digests: bytes = b""


class Basis(msgspec.Struct, frozen=True, kw_only=True):
    """What a partition of the current generation was made from: what the next run compares with.

    Args:
        origin: the generation that wrote its rows; the fields from `model` on are that one's.
        reason: empty, or why it was carried forward though it should have been scored.
        kept: False if the next run scores it again in any case, so that its origin's rows can go.
    """

    origin: int
    rows: int
    reason: str
    input_digest: str
    model: str
    model_hash: str
    code_digest: str
    outputs: tuple[str, ...]
    partitioning: str
    kept: bool


@dataclass(frozen=True, kw_only=True)
class Publication:
    """What publishing did.

    Args:
        epoch: the pointer's new epoch; None if the pointer did not move (archived).
        state: `current`, or `archived` for a generation older than the current one.
        coverage: share of partitions this run itself covered, 0 to 1.
        rows: predictions in the generation, carried-forward ones included.
        reason: empty, or why the pointer did not move.
        carried: number of partitions carried forward from the generation before.
        alert: what somebody should look at; empty if nothing is unusual.
    """

    generation: int
    epoch: int | None
    state: State
    coverage: float
    rows: int
    reason: str
    carried: int
    alert: str = ""

    @classmethod
    def of(cls, outcome: GenerationRecord, carried: int) -> Publication:
        """What came of a generation that is published: current, or archived; what became of it since does not count."""
        return cls(
            generation=outcome.generation,
            epoch=outcome.epoch,
            state=State.ARCHIVED if outcome.state is State.ARCHIVED else State.CURRENT,
            coverage=outcome.coverage,
            rows=outcome.rows,
            reason=outcome.reason,
            carried=carried,
            alert=outcome.alert,
        )
