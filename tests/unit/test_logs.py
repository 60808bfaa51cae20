"""Log lines in three formats, their fields, and the trace that is taken over and passed on."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import threading
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from almanac import logs
from almanac.logs import LogFormat, Trace, context, trace_of

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, as it was before afterwards."""
    found = logging.getLogger()
    handlers, level = list(found.handlers), found.level
    yield found
    found.handlers[:] = handlers
    found.setLevel(level)
    logging.captureWarnings(False)


def lines(root: logging.Logger, log_format: LogFormat, write: object = None) -> list[str]:
    """What a process writes in a format: two lines, the second with a traceback."""
    stream = io.StringIO()
    logs.configure("tested", log_format, stream=stream)
    log = logging.getLogger("almanac.some")
    with context(pipeline="weather", trace=trace_of(PARENT)):
        log.info('wrote "%s"\nand more', "Zürich", extra={"generation": 7})
    try:
        raise ValueError("not a number")
    except ValueError:
        log.exception("gave up")
    return stream.getvalue().splitlines()


def test_json_is_one_object_a_line_with_every_field(root: logging.Logger) -> None:
    first, second = (json.loads(line) for line in lines(root, "json"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first.pop("time"))
    assert first == {
        "level": "info", "process": "tested", "logger": "almanac.some", "pipeline": "weather", "generation": 7,
        "trace": TRACE, "message": 'wrote "Zürich"\nand more',
    }  # fmt: skip
    assert second["level"] == "error"
    assert "ValueError: not a number" in second["error"]
    assert not {"pipeline", "trace"} & set(second)


def test_logfmt_quotes_what_needs_it(root: logging.Logger) -> None:
    first, second = lines(root, "logfmt")
    assert f'pipeline=weather generation=7 trace={TRACE} message="wrote \\"Zürich\\"\\nand more"' in first
    assert 'message="gave up" error="Traceback' in second


def test_text_keeps_the_message_and_the_traceback_for_people(root: logging.Logger) -> None:
    found = lines(root, "text")
    assert f'INFO almanac.some wrote "Zürich"\\nand more trace={TRACE}' in found[0]  # what it quotes makes no line
    assert found[-1] == "ValueError: not a number"


def test_configuring_again_writes_each_line_once_and_a_closed_stream_is_no_error(root: logging.Logger) -> None:
    stream = io.StringIO()
    for _ in range(2):
        logs.configure("tested", "json", stream=stream)
    logging.getLogger("almanac.some").warning("once")
    assert stream.getvalue().count("once") == 1
    stream.close()
    logging.getLogger("almanac.some").warning("lost")


def test_a_message_from_outside_cannot_fill_the_disk(root: logging.Logger) -> None:
    stream = io.StringIO()
    logs.configure("tested", "json", stream=stream)
    logging.getLogger("almanac.some").info("x" * 1_000_000)
    assert len(stream.getvalue()) < 2 * logs.MESSAGE_CHARACTERS_MAX


def test_contexts_nest_and_belong_to_a_thread_or_a_task() -> None:
    async def task(name: str) -> dict[str, object]:
        with context(pipeline=name):
            await asyncio.sleep(0)
            return logs.fields()

    async def both() -> list[dict[str, object]]:
        return list(await asyncio.gather(task("a"), task("b")))

    with context(pipeline="weather", generation=1):
        with context(generation=2, trace=Trace(trace_id=TRACE)):
            assert logs.fields() == {"pipeline": "weather", "generation": 2, "trace": TRACE}
        assert logs.fields() == {"pipeline": "weather", "generation": 1}
        elsewhere: list[dict[str, object]] = []
        thread = threading.Thread(target=lambda: elsewhere.append(logs.fields()))
        thread.start()
        thread.join()
        assert elsewhere == [{}]
    assert logs.fields() == {}
    assert [found["pipeline"] for found in asyncio.run(both())] == ["a", "b"]


def test_the_fields_are_on_structlogs_lines_too() -> None:
    """Airflow's task logs are structlog's."""
    with context(pipeline="weather", generation=3):
        assert structlog.contextvars.get_contextvars() == {"pipeline": "weather", "generation": 3}
    assert structlog.contextvars.get_contextvars() == {}


@pytest.mark.parametrize("header", [PARENT, PARENT.encode(), f"01-{TRACE}-00f067aa0ba902b7-01-later"])
def test_a_traceparent_is_taken_over_and_passed_on(header: str | bytes) -> None:
    found = trace_of(header)
    assert found.trace_id == TRACE
    passed_on = found.header()
    assert trace_of(passed_on).trace_id == TRACE
    assert passed_on != header


@pytest.mark.parametrize(
    "header",
    [
        None, "", b"\xff\xfe", "00-" + "0" * 32 + "-00f067aa0ba902b7-01", f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-00f067aa0ba902b7-01", f"ff-{TRACE}-00f067aa0ba902b7-01", f"{PARENT}-more", "x" * 100_000,
    ],
)  # fmt: skip
def test_without_one_that_can_be_read_a_trace_begins(header: str | bytes | None) -> None:
    found = trace_of(header)
    assert re.fullmatch("[0-9a-f]{32}", found.trace_id)
    assert found.trace_id != trace_of(header).trace_id


@given(st.text() | st.binary())
def test_no_header_fails_and_what_is_passed_on_can_be_read(header: str | bytes) -> None:
    found = trace_of(header)
    assert trace_of(found.header()).trace_id == found.trace_id


def test_the_message_of_a_line_in_whatever_format() -> None:
    assert logs.message_of('{"level": "error", "message": "no model"}') == "no model"
    for line in ("lookup: no model", "{broken", "{}", "[1]"):
        assert logs.message_of(line) == line
