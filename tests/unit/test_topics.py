"""Waiting for the leaders of topics that were just created."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from almanac.errors import Unavailable
from almanac.pipeline import Pipeline
from almanac.settings import load_settings
from pipelines.weather import weather
from streaming import topics

BROKER = "127.0.0.1:1"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 1.0
        return self.now


class Client:
    """A broker's answers cannot be asked for to order: this one says what librdkafka has been seen to say."""

    def __init__(self, *, stuck: bool) -> None:
        self.stuck, self.asked = stuck, 0

    def list_topics(self, timeout: float) -> Any:
        return type("Metadata", (), {"topics": {}})

    def create_topics(self, new: list[Any], request_timeout: float) -> dict[str, Future[None]]:
        return {topic.topic: answered(None) for topic in new}

    def list_offsets(self, asked: dict[Any, Any], request_timeout: float) -> dict[Any, Future[None]]:
        self.asked += 1
        error = KafkaException(KafkaError(KafkaError._NOENT, "No leaders found")) if self.stuck else None
        return {of: answered(error) for of in asked}


def answered(error: Exception | None) -> Future[None]:
    found: Future[None] = Future()
    found.set_exception(error) if error else found.set_result(None)
    return found


@pytest.fixture
def pipeline() -> Pipeline:
    return replace(weather, name="quick")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topics, "time", Clock())
    monkeypatch.setattr(topics.Pause, "attempts", staticmethod(lambda on, seconds_max: attempts(on)))


def attempts(on: tuple[type[Exception], ...]) -> Any:
    import stamina

    return stamina.retry_context(on=on, attempts=12, timeout=None, wait_initial=0, wait_max=0, wait_jitter=0)


def opened(monkeypatch: pytest.MonkeyPatch, clients: list[Client]) -> None:
    left = iter(clients)
    monkeypatch.setattr(topics, "open_admin", lambda settings: next(left))


@pytest.mark.usefixtures("quick")
def test_a_client_that_sees_no_leaders_is_replaced(monkeypatch: pytest.MonkeyPatch, pipeline: Pipeline) -> None:
    stuck, fresh = Client(stuck=True), Client(stuck=False)
    opened(monkeypatch, [stuck, fresh])
    found = topics.ensure_topics(pipeline, load_settings(kafka_bootstrap=BROKER))
    assert found == [topic.name for topic in topics.topics(pipeline)]
    assert stuck.asked > 1, "one refusal is what any new topic gives"
    assert fresh.asked == 1


@pytest.mark.usefixtures("quick")
def test_no_leaders_at_all_are_an_unavailable_broker(monkeypatch: pytest.MonkeyPatch, pipeline: Pipeline) -> None:
    opened(monkeypatch, [Client(stuck=True) for _ in range(12)])
    with pytest.raises(Unavailable, match=r"No leaders found .*almanac status"):
        topics.ensure_topics(pipeline, load_settings(kafka_bootstrap=BROKER))


@pytest.mark.usefixtures("quick")
def test_a_client_that_never_answers_is_an_unavailable_broker(
    monkeypatch: pytest.MonkeyPatch, pipeline: Pipeline
) -> None:
    silent = Client(stuck=False)
    monkeypatch.setattr(silent, "create_topics", lambda new, request_timeout: {"t": answered(TimeoutError())})
    opened(monkeypatch, [silent])
    with pytest.raises(Unavailable, match=rf"no answer in time .*{BROKER}"):
        topics.ensure_topics(pipeline, load_settings(kafka_bootstrap=BROKER))
