"""Topics, `almanac publish` and `almanac dead-letters` on a real broker."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
from confluent_kafka.admin import ConfigResource

from almanac.clock import format_time, utc_now
from almanac.errors import Unavailable, UsageError
from almanac.pipeline import Pipeline
from almanac.settings import Settings, load_settings
from streaming.connection import open_admin, open_producer
from streaming.dead_letters import dead_letters
from streaming.publish import Outgoing, publish
from streaming.records import HEADER_CUT
from streaming.topics import ensure_topics
from tests.generations import new_name
from tests.lookups import unused_port
from tests.streams import GRID, almanac, environment, event, read_topic, tiny_pipeline


@pytest.fixture
def tiny() -> Pipeline:
    return tiny_pipeline(new_name())


@pytest.fixture
def found(kafka_bootstrap: str, tmp_path: Path) -> Settings:
    return load_settings(state_dir=tmp_path, kafka_bootstrap=kafka_bootstrap)


def test_topics_are_created_once_and_with_their_limits(tiny: Pipeline, found: Settings) -> None:
    names = {tiny.stream.topic, tiny.predictions_topic, tiny.features_topic, tiny.dead_letter_topic}  # type: ignore[union-attr]
    assert set(ensure_topics(tiny, found)) == names
    assert ensure_topics(tiny, found) == []
    resources = [ConfigResource(ConfigResource.Type.TOPIC, name) for name in sorted(names)]
    admin = open_admin(found)
    described = {resource.name: future.result(10) for resource, future in admin.describe_configs(resources).items()}
    assert described[tiny.dead_letter_topic]["retention.ms"].value == str(30 * 86_400_000)
    assert {int(config["max.message.bytes"].value) for config in described.values()} == {262_144, 524_288}


def test_publish_sends_lines_as_they_are_keyed_by_their_entity(tiny: Pipeline, found: Settings, tmp_path: Path) -> None:
    good = event(7, 281.0).value
    file = tmp_path / "events.jsonl"
    file.write_bytes(good + b"\n\nnot json\n" + b'{"cell_id": "x"}')
    done = almanac(environment(found, tiny.name), "publish", tiny.name, "--file", str(file))
    assert (done.returncode, done.stdout) == (0, f"3 events delivered to {tiny.name}.observations\n"), done.stderr
    sent = {(record.key, record.value) for record in read_topic(found, f"{tiny.name}.observations")}
    assert sent == {(b"7", good), (None, b"not json"), (b"x", b'{"cell_id": "x"}')}


def test_publish_with_check_sends_nothing_of_a_file_with_a_malformed_event(tiny: Pipeline, found: Settings) -> None:
    ensure_topics(tiny, found)
    lines = event(7, 281.0).value + b'\n{"cell_id": 99}\n'
    done = almanac(environment(found, tiny.name), "publish", tiny.name, "--file", "-", "--check", given=lines)
    assert done.returncode == 2
    assert "event 2 is malformed (unknown-entity" in done.stderr
    assert done.stderr.count("\n") == 1
    assert read_topic(found, f"{tiny.name}.observations") == []


def test_publish_replays_the_sources_latest_observations(tiny: Pipeline, found: Settings) -> None:
    done = almanac(environment(found, tiny.name), "publish", tiny.name, "--replay", "--hours", "2", "--limit", "30")
    assert done.returncode == 0, done.stderr
    sent = [json.loads(record.value or b"") for record in read_topic(found, f"{tiny.name}.observations")]
    assert len(sent) == 30
    assert sorted(body["cell_id"] for body in sent) == sorted([*range(GRID.cells), *range(10)])
    assert all(180 < body["t2m"] < 340 and body["observed_at"].endswith(":00:00Z") for body in sent)
    assert len({body["observed_at"] for body in sent}) == 2


def test_publish_without_a_broker_says_that_nothing_was_delivered(tiny: Pipeline, found: Settings) -> None:
    alone = found.model_copy(update={"kafka_bootstrap": f"127.0.0.1:{unused_port()}"})
    done = almanac(environment(alone, tiny.name), "publish", tiny.name, given=event(7, 281.0).value)
    assert done.returncode == Unavailable.exit_code
    assert done.stderr.count("\n") == 1
    assert str(alone.kafka_bootstrap) in done.stderr


def test_an_event_that_is_too_large_is_named_and_the_others_are_sent(tiny: Pipeline, found: Settings) -> None:
    """One that the broker refuses, and one that the producer does not even hand to it."""
    by_broker, by_producer = (Outgoing(value=b"x" * size, key=None, name=f"{size}") for size in (400_000, 1_100_000))
    said = r"^3 events were delivered to .*: (400000 \(400,000 bytes\)|1100000 \(1,100,000 bytes\)), (400000|1100000) "
    with pytest.raises(UsageError, match=said):
        publish([event(7, 281.0), by_broker, event(8, 281.0), by_producer, event(9, 281.0)], tiny, found)
    assert len(read_topic(found, f"{tiny.name}.observations")) == 3


def test_one_line_of_2_mb_keeps_no_other_from_being_sent(tiny: Pipeline, found: Settings, tmp_path: Path) -> None:
    lines = [event(cell, 281.0).value or b"" for cell in range(3)]
    file = tmp_path / "events.jsonl"
    file.write_bytes(b"\n".join([lines[0], b"x" * 2_000_000, lines[1], b"y" * 1_048_576, b"z" * 300_000, lines[2]]))
    done = almanac(environment(found, tiny.name), "publish", tiny.name, "--file", str(file))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    for said in (
        "3 events were delivered",
        "line 2 (2,000,001 bytes)",
        "line 4 (",
        "line 5 (300,000 bytes)",
        "shorten",
    ):
        assert said in done.stderr, said
    sent = [record.value for record in read_topic(found, f"{tiny.name}.observations")]
    assert sorted(sent, key=str) == sorted(lines, key=str)
    checked = almanac(environment(found, tiny.name), "publish", tiny.name, "--check", "--file", str(file))
    assert (checked.returncode, checked.stderr.count("\n")) == (2, 1), checked.stderr
    assert "line 2 has 2,000,001 bytes" in checked.stderr
    assert len(read_topic(found, f"{tiny.name}.observations")) == 3


def test_what_cannot_be_sent_again_is_said_and_the_rest_is_sent(tiny: Pipeline, found: Settings) -> None:
    ensure_topics(tiny, found)
    producer = open_producer(found)
    for number, (size, more) in enumerate([(10, {}), (300_000, {}), (10, {HEADER_CUT: "9/9/9"}), (20, {})]):
        headers = {
            "__streams.errors.topic": f"{tiny.name}.observations", "__streams.errors.partition": "0",
            "__streams.errors.offset": str(number), "almanac.reason": "not-json", **more,
        }  # fmt: skip
        producer.produce(tiny.dead_letter_topic, value=b"x" * size, headers=headers)
    assert producer.flush(10) == 0
    done = almanac(environment(found, tiny.name), "redrive", tiny.name)
    assert done.returncode == 2
    assert "1 more cannot be sent again: they were too large to be kept whole" in done.stderr
    assert f"2 events were delivered to {tiny.name}.observations; larger than the topic takes" in done.stderr
    assert f"the event of {tiny.name}.observations/0@1 (300,000 bytes)" in done.stderr
    assert sorted(len(record.value or b"") for record in read_topic(found, f"{tiny.name}.observations")) == [10, 20]


def test_many_events_at_once_are_all_delivered(tiny: Pipeline, found: Settings) -> None:
    assert publish((event(number % 20, 281.0) for number in range(30_000)), tiny, found) == 30_000
    assert len(read_topic(found, f"{tiny.name}.observations")) == 30_000


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("publish", "nothing"), "no pipeline 'nothing' is declared"),
        (("publish", "{name}", "--file", "/nowhere.jsonl"), "/nowhere.jsonl cannot be read"),
        (("publish", "{name}", "--file", "-", "--replay"), "exclude each other"),
        (("publish", "{name}", "--replay", "--hours", "0"), "0 hours cannot be replayed"),
        (("dead-letters", "{name}"), "does not exist yet"),
    ],
)
def test_a_wrong_call_gets_one_line(words: tuple[str, ...], said: str, tiny: Pipeline, found: Settings) -> None:
    done = almanac(environment(found, tiny.name), *(word.format(name=tiny.name) for word in words))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert said in done.stderr


def test_dead_letters_are_listed_newest_last_with_why_and_where(tiny: Pipeline, found: Settings) -> None:
    ensure_topics(tiny, found)
    assert dead_letters(tiny, found, 5) == []
    producer = open_producer(found)
    minute = utc_now().replace(second=0, microsecond=0)  # old ones would be deleted: retention goes by these times
    for number in range(7):
        headers = {
            "__streams.errors.message": f"no {number}",
            "__streams.errors.topic": "t",
            "__streams.errors.partition": "2",
            "__streams.errors.offset": str(number),
            "almanac.reason": "not-json",
        }
        producer.produce(
            tiny.dead_letter_topic,
            value=b"raw \xff",
            headers=headers,
            timestamp=int(minute.timestamp()) * 1000 + number,
        )
    assert producer.flush(10) == 0
    listed = dead_letters(tiny, found, 5)
    assert [found.letter.offset for found in listed] == [2, 3, 4, 5, 6]
    shown = almanac(environment(found, tiny.name), "dead-letters", tiny.name, "--limit", "1", "--json")
    assert json.loads(shown.stdout) == [
        {
            "at": format_time(minute + timedelta(milliseconds=6)),
            "reason": "not-json",
            "message": "no 6",
            "topic": "t",
            "partition": 2,
            "offset": 6,
            "key": None,
            "raw": "raw \\xff",
        }
    ]
    assert "not-json" in almanac(environment(found, tiny.name), "dead-letters", tiny.name).stdout
    acting = {"almanac.reason": "[/b]\x1b[2J", "__streams.errors.offset": "9" * 5_000}
    producer.produce(tiny.dead_letter_topic, value=b'{"a":"[/b]"} \x1b]8;;https://example.com\x1b\\', headers=acting)
    assert producer.flush(10) == 0
    plainly = almanac(environment(found, tiny.name), "dead-letters", tiny.name)
    assert (plainly.returncode, plainly.stderr) == (0, "")
    assert "[/b]" in plainly.stdout
    assert all(line.isprintable() for line in plainly.stdout.splitlines())
    again = almanac(environment(found, tiny.name), "redrive", tiny.name, "--dry-run")
    assert "1 more cannot be sent again" in again.stderr  # somebody wrote it who gave no offset
    assert "\n7 of them carry no proof of where they first stood" in again.stderr
    assert again.stdout.startswith("7 dead letters would be sent again")
