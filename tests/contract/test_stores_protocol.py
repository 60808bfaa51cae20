"""What every store makes of tokens, rollbacks, carried partitions and coverage: the rest of the one suite."""

from __future__ import annotations

from datetime import timedelta

import pytest

from almanac.errors import GateError, Superseded, UsageError
from tests.contract.test_stores import Subject
from tests.contract.test_stores import subject as subject
from tests.generations import NOON, grid_pipeline, published_generation, staged_generation, staged_parts, start_of


def test_an_attempt_that_lost_its_token_changes_nothing(subject: Subject) -> None:
    pipeline = grid_pipeline()
    subject.prepared(pipeline)
    record = subject.record
    attempt = staged_generation(record, pipeline, 1.0)
    heir = record.take_over(pipeline.name, attempt.generation)
    for refused in (
        lambda: record.publish(attempt, pipeline, now=NOON),
        lambda: record.stage(attempt, staged_parts(pipeline, 2.0)),
        lambda: record.quarantine(attempt, 0, "bad"),
        lambda: record.reject(attempt, "bad"),
    ):
        with pytest.raises(Superseded):
            refused()
    assert record.publish(heir, pipeline, now=NOON).epoch == 1
    assert record.publish(heir, pipeline, now=NOON).epoch == 1
    subject.follow(pipeline)
    assert subject.pointer(pipeline.name) == record.pointer(pipeline.name)


def test_what_was_rolled_back_holds_and_can_be_undone(subject: Subject) -> None:
    pipeline = grid_pipeline()
    subject.prepared(pipeline)
    record = subject.record
    for value in range(3):
        published_generation(record, pipeline, float(value), NOON + timedelta(hours=value))
    for to, error in ((9, "no generation 9"), (3, "current already")):
        with pytest.raises(UsageError, match=error):
            record.rollback(pipeline.name, to, now=NOON)
    assert record.rollback(pipeline.name, 1, now=NOON).epoch == 4
    with pytest.raises(GateError, match="generation 3 was rolled back"):
        published_generation(record, pipeline, 3.0, NOON + timedelta(hours=3))
    assert record.rollback(pipeline.name, 2, now=NOON).epoch == 5
    states = {found.generation: found.state.value for found in record.generations(pipeline.name)}
    assert states == {1: "previous", 2: "current", 3: "rolled_back", 4: "staged"}
    subject.follow(pipeline)
    assert subject.pointer(pipeline.name) == record.pointer(pipeline.name)
    assert record.clear_rollback(pipeline.name) == 3
    assert record.publish(record.take_over(pipeline.name, 4), pipeline, now=NOON).epoch == 6


def test_partitions_that_failed_are_carried_forward_and_poor_coverage_is_rejected(subject: Subject) -> None:
    pipeline = grid_pipeline(coverage_min=0.75)
    subject.prepared(pipeline)
    record = subject.record
    published_generation(record, pipeline, 1.0)
    attempt = record.begin_generation(pipeline, start_of(pipeline, "poor"), now=NOON)
    record.stage(attempt, staged_parts(pipeline, 2.0, partitions=range(11)))
    with pytest.raises(GateError, match="covers 11 of 16"):
        record.publish(attempt, pipeline, now=NOON)
    attempt = record.begin_generation(pipeline, start_of(pipeline, "good"), now=NOON)
    record.stage(attempt, staged_parts(pipeline, 3.0, partitions=range(13)))
    record.quarantine(attempt, 4, "bad")
    outcome = record.publish(attempt, pipeline, now=NOON)
    assert (outcome.carried, outcome.rows, outcome.coverage) == (4, 64, 12 / 16)
    subject.follow(pipeline)
    found = subject.manifest(pipeline.name, 3)
    assert [partition for partition, entry in sorted(found.items()) if entry.origin == 1] == [4, 13, 14, 15]


def test_retention_gives_what_was_left_its_time(subject: Subject) -> None:
    pipeline = grid_pipeline(generations_kept=1)
    subject.prepared(pipeline)
    record = subject.record
    for value in range(4):
        published_generation(record, pipeline, float(value), NOON)
    record.rollback(pipeline.name, now=NOON)
    assert record.retire(pipeline, now=NOON + timedelta(minutes=59)) == []
    assert record.retire(pipeline, now=NOON + timedelta(hours=1)) == [1]
    assert record.retire(pipeline, now=NOON + timedelta(hours=24)) == [4]
    with pytest.raises(UsageError, match=f"generation 4 of {pipeline.name} is retired"):
        record.rollback(pipeline.name, 4, now=NOON)
    subject.follow(pipeline)
    assert len(subject.manifest(pipeline.name, 3)) == 16


def test_everything_that_a_rollback_passes_over_can_be_gone_back_to_for_a_day(subject: Subject) -> None:
    pipeline = grid_pipeline(generations_kept=4)
    subject.prepared(pipeline)
    record = subject.record
    for day in range(5):
        published_generation(record, pipeline, float(day), NOON + timedelta(days=day))
    now = NOON + timedelta(days=4, hours=23)  # 3 was left almost two days ago, 4 almost one
    record.rollback(pipeline.name, 2, now=now)
    left = {found.generation: found.left_at for found in record.generations(pipeline.name)}
    assert [left[number] for number in (1, 3, 4, 5)] == [NOON + timedelta(days=1), now, now, now]
    assert record.retire(pipeline, now=now + timedelta(hours=23, minutes=59)) == []
    assert record.rollback(pipeline.name, 3, now=now + timedelta(hours=23)).generation == 3
    assert record.retire(pipeline, now=now + timedelta(hours=24)) == [4, 5]
