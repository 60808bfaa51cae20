"""The door of Feast's registry: rows in a real Postgres that are mutated from valid ones.

What a row says may change what is read; nothing of it is run, and what is no definition is refused by its row.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import dill
import psycopg
from feast.protos.feast.core import DataSource_pb2, Entity_pb2, FeatureService_pb2, FeatureView_pb2
from feast.protos.feast.core import OnDemandFeatureView_pb2 as on_demand
from feast.protos.feast.core import StreamFeatureView_pb2 as stream
from psycopg import sql

from almanac.errors import FeatureError
from almanac.settings import load_settings
from features.store import REGISTRY_SCHEMA, apply, feature_store, registry_errors
from tests.conftest import running_postgres
from tests.fuzz.runner import ACCEPTED, MEBIBYTE, OneByOne, Verdict

REASONS = {"holds a function": True, "names the module": True, "no valid definition": False}
"""What a refusal says, and whether the row passed the first check: that it is a definition."""
KINDS: dict[str, tuple[str, Any]] = {
    "entities": ("entity", Entity_pb2.Entity),
    "data_sources": ("data_source", DataSource_pb2.DataSource),
    "feature_views": ("feature_view", FeatureView_pb2.FeatureView),
    "feature_services": ("feature_service", FeatureService_pb2.FeatureService),
}
"""Table -> what it holds, in names of columns and methods; and its message."""
NUMBERS = (0, 1, -1, 7, 99, (1 << 31) - 1, -(1 << 31))
TEXTS = ("", "x", "é", "a.b", "os.system", "feast.nothing.Such", "feast.data_source.PushSource", "\x1b[2J", "n" * 300)


class Payload:
    """Unpickled, it writes a file outside the door's folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


class Registry(OneByOne):
    """The door."""

    reasons = frozenset(REASONS)
    memory_bytes_max = 256 * MEBIBYTE

    @contextmanager
    def opened(self, folder: Path) -> Iterator[Registry]:
        """A Postgres with the project's own definitions."""
        warnings.simplefilter("ignore")
        self._payload = dill.dumps(Payload(folder.parent / "ran"))
        with running_postgres(folder / "postgres") as url, psycopg.connect(url, autocommit=True) as self._connection:
            settings = load_settings(state_dir=folder / "state", postgres_url=url, redis_url=None)
            apply(settings)
            self._store = feature_store(settings)
            self._store.registry.list_projects()  # it is opened now, before a row is another
            self._rows = [(table, name, data) for table in KINDS for name, data in self._read(table)]
            yield self

    def _read(self, table: str) -> list[tuple[str, bytes]]:
        kind = KINDS[table][0]
        query = sql.SQL("SELECT {}, {} FROM {}").format(
            sql.Identifier(f"{kind}_name"), sql.Identifier(f"{kind}_proto"), sql.Identifier(REGISTRY_SCHEMA, table)
        )
        return [(name, bytes(data)) for name, data in self._connection.execute(query).fetchall()]

    def _write(self, table: str, name: str, data: bytes) -> None:
        kind = KINDS[table][0]
        query = sql.SQL("UPDATE {} SET {} = %s WHERE {} = %s").format(
            sql.Identifier(REGISTRY_SCHEMA, table), sql.Identifier(f"{kind}_proto"), sql.Identifier(f"{kind}_name")
        )
        self._connection.execute(query, (data, name))

    def send(self, random: Random) -> Verdict:
        """Another one each time."""
        if random.random() < 0.15:
            return self._function(random)
        table, name, data = random.choice(self._rows)
        self._write(table, name, _mutated(KINDS[table][1], data, random))
        try:
            return self._asked(KINDS[table][0], name, random)
        finally:
            self._write(table, name, data)

    def _function(self, random: Random) -> Verdict:
        """A view with a function, of one of the kinds that may have one."""
        kind = random.choice(("stream_feature_view", "on_demand_feature_view"))
        view: Any
        if kind == "stream_feature_view":
            view = stream.StreamFeatureView()
            view.spec.user_defined_function.body = self._payload
            view.spec.user_defined_function.body_text = random.choice(("", "open('ran', 'w')"))
        else:
            view = on_demand.OnDemandFeatureView()
            view.spec.mode = "pandas"
            function = view.spec.feature_transformation.user_defined_function
            function.name, function.body = "run", random.choice((self._payload, b""))
            function.body_text = "open('ran', 'w')\ndef run(x): return x\n"
        view.spec.name, view.spec.project = "computed", self._store.project
        data = view.SerializeToString()
        if random.random() < 0.3:
            data = _bytes(data, random)
        query = sql.SQL("INSERT INTO {} ({}, project_id, last_updated_timestamp, {}) VALUES (%s, %s, 0, %s)").format(
            sql.Identifier(REGISTRY_SCHEMA, f"{kind}s"),
            sql.Identifier("feature_view_name"),
            sql.Identifier("feature_view_proto"),
        )
        self._connection.execute(query, ("computed", self._store.project, data))
        try:
            return self._asked(kind, "computed", random)
        finally:
            self._connection.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(REGISTRY_SCHEMA, f"{kind}s")))

    def _asked(self, kind: str, name: str, random: Random) -> Verdict:
        registry, project = self._store.registry, self._store.project
        plural = "entities" if kind == "entity" else f"{kind}s"
        try:
            with registry_errors():
                if random.random() < 0.5:
                    getattr(registry, f"get_{kind}")(name, project)
                else:
                    getattr(registry, f"list_{plural}")(project)
        except FeatureError as error:
            if not str(error).isprintable():
                raise AssertionError(f"not printable: {error!r}") from error
            reason = next((one for one in REASONS if one in str(error)), str(error)[:80])
            if not REASONS.get(reason, True) and ascii(name) not in str(error):
                raise AssertionError(f"names no row: {error}") from error
            return Verdict(reason, REASONS.get(reason, True))
        return Verdict(ACCEPTED, True)


def _mutated(message: Any, data: bytes, random: Random) -> bytes:
    found = message.FromString(data)
    for _ in range(random.choice((1, 1, 2, 3))):
        _change(random.choice(list(_messages(found))), random)
    if message is DataSource_pb2.DataSource and random.random() < 0.3:
        found.type, found.data_source_class_type = found.CUSTOM_SOURCE, random.choice(TEXTS)
    made = bytes(found.SerializeToString())
    return _bytes(made, random) if random.random() < 0.3 else made


def _messages(found: Any) -> Iterator[Any]:
    """It, and the messages within it, maps left out."""
    yield found
    for field, value in found.ListFields():
        if field.message_type is not None and not field.message_type.GetOptions().map_entry:
            for one in value if field.is_repeated else [value]:
                yield from _messages(one)


def _change(found: Any, random: Random) -> None:
    """Another value of a field, or none."""
    field = random.choice(found.DESCRIPTOR.fields or [None])
    if field is None:
        return
    if random.random() < 0.2 or field.is_repeated:
        found.ClearField(field.name)
    elif field.message_type is not None:
        getattr(found, field.name).SetInParent()
    elif field.cpp_type == field.CPPTYPE_STRING:
        text = random.choice(TEXTS)
        setattr(found, field.name, text.encode() if field.type == field.TYPE_BYTES else text)
    elif field.cpp_type == field.CPPTYPE_BOOL:
        setattr(found, field.name, random.random() < 0.5)
    elif field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        setattr(found, field.name, random.choice((0.0, float("nan"), -1e30)))
    else:
        signed = field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_INT64, field.CPPTYPE_ENUM)
        setattr(found, field.name, random.choice([one for one in NUMBERS if signed or one >= 0]))


def _bytes(data: bytes, random: Random) -> bytes:
    at = random.randrange(len(data) + 1)
    return random.choice((data[:at], data[:at] + random.randbytes(3) + data[at + 3 :], data + data[at:], b""))


DOOR = Registry()
