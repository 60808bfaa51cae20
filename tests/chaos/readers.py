"""Readers that ask without end: the lookup in three ways, Redis and Postgres raw. Each checks what it can see."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import httpx
import psycopg

from almanac.blocks import decode
from almanac.clock import format_time
from almanac.declarations import pipeline as declared
from almanac.errors import AlmanacError
from serving_cache.layout import view_name
from serving_cache.redis import RedisStore
from tests.chaos.book import Book, Values
from tests.chaos.stack import Stack

PAUSE_SECONDS = 0.25
REQUEST_SECONDS_MAX = 5.0
STOP_SECONDS_MAX = 30
NAME = "weather"


class Readers:
    """A thread a reader, from `with` to its end.

    Args:
        seed: which cells are asked for.
    """

    def __init__(self, stack: Stack, book: Book, seed: int) -> None:
        self._stack, self._book = stack, book
        self._chance = random.Random(seed)
        self._pipeline = declared(NAME)
        self._cells: int = self._pipeline.partitions.cells  # type: ignore[union-attr]
        self._done = threading.Event()
        self._threads = [
            threading.Thread(target=self._repeated, args=(name, reader), name=f"reader {name}")
            for name, reader in {
                "single": self._single, "many": self._many, "point": self._point,
                "redis": self._redis, "postgres": self._postgres,
            }.items()
        ]  # fmt: skip

    def __enter__(self) -> Readers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join(STOP_SECONDS_MAX)

    def _repeated(self, name: str, reader: Callable[[str, httpx.Client], None]) -> None:
        with httpx.Client(base_url=self._stack.settings.need("lookup_url"), timeout=REQUEST_SECONDS_MAX) as client:
            while not self._done.wait(PAUSE_SECONDS):
                try:
                    reader(name, client)
                except (httpx.HTTPError, AlmanacError, psycopg.Error):
                    continue  # nothing was answered: the gap until the next answer is what counts
                except Exception as error:  # noqa: BLE001 - whatever a reader meets is a finding
                    self._book.breach(f"reader {name} met {error!r}")

    def _single(self, name: str, client: httpx.Client) -> None:
        answer = client.get(f"/v1/{NAME}/entities/{self._chance.randrange(self._cells)}")
        if answer.status_code == 200:
            self._check(name, [answer.json()])

    def _point(self, name: str, client: httpx.Client) -> None:
        place = {"lat": 52.4 - 2 * self._chance.random(), "lon": -1.2 + 2 * self._chance.random()}
        answer = client.get(f"/v1/{NAME}/point", params=place)
        if answer.status_code == 200:
            self._check(name, [answer.json()])

    def _many(self, name: str, client: httpx.Client) -> None:
        answer = client.post(f"/v1/{NAME}/entities:lookup", json={"entities": list(range(self._cells))})
        if answer.status_code != 200:
            return
        body = answer.json()
        if body["refusals"] or len(body["answers"]) != self._cells:
            self._book.breach(f"{name}: {len(body['answers'])} answers, refused: {body['refusals'][:2]}")
        if {found["epoch"] for found in body["answers"]} != {body["epoch"]}:
            self._book.breach(f"{name}: answers of several epochs under epoch {body['epoch']}")
        batch = {found["generation"] for found in body["answers"] if found["source"] == "batch" and found["rung"] == 1}
        if len(batch) > 1:
            self._book.breach(f"{name}: answers of the generations {sorted(batch)} in one")
        self._check(name, body["answers"])

    def _check(self, name: str, answers: list[dict[str, Any]]) -> None:
        self._book.answered(name, answers[0]["epoch"])
        for found in answers:
            values = {key: out["value"] for key, out in found["outputs"].items() if out["value"] is not None}
            if found["source"] == "batch":
                self._book.from_batch(name, found["generation"], found["entity"], values)
            elif found["source"] == "stream":
                self._book.from_stream(name, found["entity"], found["as_of"], found["model"], values)

    def _redis(self, name: str, client: httpx.Client) -> None:
        with RedisStore(self._stack.settings.need("redis_url")) as cache:
            pointer = cache.pointer(NAME)
            if pointer is None:
                return
            number = pointer.generation.generation
            manifest = cache.manifest(NAME, number)
            found = cache.blocks(NAME, {entry.block_hash for entry in manifest.values()})
            if len(manifest) != self._pipeline.partitions.count or len(found) != len(
                {entry.block_hash for entry in manifest.values()}
            ):
                self._book.breach(f"{name}: epoch {pointer.epoch} names {len(manifest)} partitions, {len(found)} found")
            self._book.answered(name, pointer.epoch)
            for entry in manifest.values():
                block = decode(found[entry.block_hash])
                for row, entity in enumerate(block.keys):
                    values = {key: float(column[row]) for key, column in block.columns.items()}
                    self._book.from_batch(name, number, int(entity), values)

    def _postgres(self, name: str, client: httpx.Client) -> None:
        outputs = self._pipeline.output_names
        with psycopg.connect(
            self._stack.settings.need("postgres_url"), autocommit=True, connect_timeout=5
        ) as connection:
            cursor = connection.execute(f"SELECT * FROM {view_name(NAME)}")
            columns = [column.name for column in cursor.description or ()]
            rows = cursor.fetchall()
        found = [dict(zip(columns, row, strict=True)) for row in rows]
        if not found:
            return
        marks = {(row["epoch"], row["generation"]) for row in found}
        if len(marks) != 1 or len(found) != self._cells:
            self._book.breach(f"{name}: {len(found)} rows of the epochs and generations {sorted(marks)}")
        epoch, generation = found[0]["epoch"], found[0]["generation"]
        self._book.answered(name, epoch)
        if generation not in self._book.truth:
            rows_of: dict[int, Values] = {
                int(row["cell_id"]): {key: float(row[key]) for key in outputs} for row in found
            }
            self._book.truth[generation] = rows_of
        if epoch not in self._book.as_of and (as_of := self._as_of(epoch)):
            self._book.as_of[epoch] = as_of

    def _as_of(self, epoch: int) -> str:
        with psycopg.connect(self._stack.settings.need("postgres_url"), autocommit=True, connect_timeout=5) as asked:
            row = asked.execute(
                "SELECT as_of FROM generations WHERE pipeline = %s AND epoch = %s", (NAME, epoch)
            ).fetchone()
        return "" if row is None else format_time(row[0])
