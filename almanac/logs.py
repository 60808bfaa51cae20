"""Structured logs: what every line says beside its message, and how a line is written.

A line has `time`, `level`, `process`, `logger`, `message`, and where they are
known `pipeline`, `generation`, `trace`. The last three come from the call's
`extra` or from the surrounding `context`. `ALMANAC_LOG_FORMAT` chooses how it is
written: `text` for people at a terminal, `json` (one object a line) or `logfmt`
for programs.

`trace` is the trace id of a W3C `traceparent`: taken over from the HTTP or Kafka
header where there is a usable one, made otherwise, and passed on.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from almanac.plain_text import LINE_BREAK_AND_TAB, plain, plain_json

LogFormat = Literal["text", "json", "logfmt"]

TRACEPARENT = "traceparent"
"""Name of the header, in HTTP and in Kafka."""
FIELDS = ("pipeline", "generation", "trace")
MESSAGE_CHARACTERS_MAX = 16_384
"""A longer message is cut: what it quotes may come from outside."""

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_TRACEPARENT_CHARACTERS_MAX = 512
_BARE = re.compile(r"[^\s\"=\\]+")
_context: ContextVar[dict[str, Any] | None] = ContextVar("almanac_log_context", default=None)


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Where a piece of work stands in a trace.

    Args:
        trace_id: 32 lowercase hexadecimal digits, not all zero.
        flags: two hexadecimal digits, as they came: `01` when the caller records the trace.
    """

    trace_id: str
    flags: str = "00"

    def header(self) -> str:
        """A `traceparent` for the next one: the same trace, a parent id of its own."""
        return f"00-{self.trace_id}-{_hex_id(8)}-{self.flags}"


def trace_of(header: str | bytes | None) -> Trace:
    """Take over a `traceparent`, or begin a trace where there is none that can be read.

    A later version of the header is read as version 00, as W3C asks; a wrong one is as good as none.
    """
    if isinstance(header, bytes):
        header = header[:_TRACEPARENT_CHARACTERS_MAX].decode("ascii", "replace")
    found = _TRACEPARENT.fullmatch(header.strip()) if header and len(header) <= _TRACEPARENT_CHARACTERS_MAX else None
    if found is not None:
        version, trace_id, parent, flags, rest = found.groups()
        later = version not in ("00", "ff")
        if (later or (version == "00" and rest is None)) and int(trace_id, 16) and int(parent, 16):
            return Trace(trace_id=trace_id, flags=flags if version == "00" else "00")
    return Trace(trace_id=_hex_id(16))


def _hex_id(size_bytes: int) -> str:
    while not (made := secrets.token_bytes(size_bytes)).strip(b"\0"):
        pass  # all zero means that there is none
    return made.hex()


@contextmanager
def context(
    *, pipeline: str | None = None, generation: int | None = None, trace: Trace | str | None = None
) -> Iterator[None]:
    """Name these fields on every line written inside, in this thread or asyncio task; None changes nothing."""
    given = {"pipeline": pipeline, "generation": generation, "trace": trace}
    if isinstance(trace, Trace):
        given["trace"] = trace.trace_id
    named = {name: value for name, value in given.items() if value is not None}
    token = _context.set({**(_context.get() or {}), **named})
    try:
        with _for_structlog(named):
            yield
    finally:
        _context.reset(token)


def _for_structlog(named: dict[str, Any]) -> AbstractContextManager[Any]:
    """Airflow's task logs are structlog's: where it is at work, the same fields are on its lines too."""
    contextvars = sys.modules.get("structlog.contextvars")
    return nullcontext() if contextvars is None else contextvars.bound_contextvars(**named)


def fields() -> dict[str, Any]:
    """The surrounding context's fields."""
    return dict(_context.get() or {})


def entry_of(record: logging.LogRecord, process: str) -> dict[str, Any]:
    """What a line says, in its order."""
    around = _context.get() or {}
    found: dict[str, Any] = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": record.levelname.lower(),
        "process": process,
        "logger": record.name,
    }
    for name in FIELDS:
        value = getattr(record, name, None)
        value = around.get(name) if value is None else value
        if value is not None:
            found[name] = value
    found["message"] = _cut(record.getMessage())
    return found


def _cut(text: str) -> str:
    if len(text) <= MESSAGE_CHARACTERS_MAX:
        return text
    return f"{text[:MESSAGE_CHARACTERS_MAX]}… ({len(text) - MESSAGE_CHARACTERS_MAX} more characters)"


class Formatter(logging.Formatter):
    """Writes a record as one line of the chosen format.

    In `text`, a traceback follows on lines of its own; elsewhere it is the field `error`.

    Args:
        process: the process's name, such as `reconciler`.
    """

    def __init__(self, process: str, log_format: LogFormat) -> None:
        super().__init__()
        self._process = process
        self._format = log_format

    def format(self, record: logging.LogRecord) -> str:
        """One line, or with a traceback in `text` several."""
        found = entry_of(record, self._process)
        error = self.formatException(record.exc_info) if record.exc_info else record.exc_text
        if self._format == "text":
            trace = f" trace={found['trace']}" if "trace" in found else ""
            line = plain(f"{found['time']} {record.levelname} {record.name} {found['message']}{trace}")
            return f"{line}\n{plain(error, keep=LINE_BREAK_AND_TAB)}" if error else line
        if error:
            found["error"] = _cut(error)
        if self._format == "json":
            return plain_json(found)
        return " ".join(f"{name}={_logfmt(str(value))}" for name, value in found.items())


def _logfmt(value: str) -> str:
    return value if _BARE.fullmatch(value) and value.isprintable() else plain_json(value)


class _Handler(logging.StreamHandler[TextIO]):
    """Ours, so that configuring twice replaces it; a stream that went away costs a line, not the process."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Nowhere is left to say it."""


def configure(process: str, log_format: LogFormat, *, level: int = logging.INFO, stream: TextIO | None = None) -> None:
    """Write this process's log lines to `stream`; called once, at its start.

    Args:
        process: the process's name, in every line.
        level: of the root logger: lines below it are dropped unless their own logger allows them.
        stream: standard error unless told.
    """
    handler = _Handler(sys.stderr if stream is None else stream)
    handler.setFormatter(Formatter(process, log_format))
    root = logging.getLogger()
    for old in [found for found in root.handlers if isinstance(found, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
    logging.captureWarnings(True)


def message_of(line: str) -> str:
    """The message of a line that one of our processes wrote in whatever format; other lines as they are."""
    if line.startswith("{"):
        try:
            return str(json.loads(line)["message"])
        except (ValueError, KeyError, TypeError):
            return line
    return line
