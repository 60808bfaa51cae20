"""Rows of Postgres as records, and the statements that several parts of the store need."""

from __future__ import annotations

from typing import Any

import msgspec
from psycopg import sql

from almanac.clock import need_utc
from almanac.errors import Superseded, UsageError
from almanac.ranked import RankedList
from serving_cache.postgres_client import Client, Connection
from serving_cache.records import Attempt, GenerationRecord, State

_COLUMNS = (
    "pipeline", "generation", "run_key", "cutoff", "as_of", "state", "model", "model_hash", "epoch", "rows", "coverage",
    "reason", "partitioning", "outputs", "clock_shift_seconds", "created_at", "published_at", "dropped_at",
    "left_at", "alert", "default_list",
)  # fmt: skip
WIDTH = len(_COLUMNS)


class StoreBase:
    """What the parts of `PostgresStore` share: the connection."""

    _client: Client


def generation_columns(alias: str) -> sql.Composed:
    """The select list that `generation_record` reads, of a table alias."""
    return sql.SQL(", ").join(sql.Identifier(alias, name) for name in _COLUMNS)


def generation_record(row: Any) -> GenerationRecord:
    """A row of `generation_columns` as a record."""
    found = dict(zip(_COLUMNS, row, strict=True))
    for name in ("cutoff", "as_of", "created_at", "published_at", "dropped_at", "left_at"):
        if found[name] is not None:
            found[name] = need_utc(found[name])
    if found["default_list"] is not None:
        found["default_list"] = msgspec.convert(found["default_list"], RankedList)
    return GenerationRecord(**{**found, "state": State(found["state"]), "outputs": tuple(found["outputs"])})


def read_generation(connection: Connection, pipeline: str, generation: int) -> GenerationRecord | None:
    """One generation; None if there is none of this number."""
    row = connection.execute(
        sql.SQL("SELECT {} FROM generations g WHERE pipeline = %s AND generation = %s").format(generation_columns("g")),
        (pipeline, generation),
    ).fetchone()
    return None if row is None else generation_record(row)


def lock_pointer(connection: Connection, pipeline: str) -> tuple[int, int | None, int | None]:
    """Lock a pipeline's pointer until the transaction ends; returns (epoch, generation, previous).

    Whatever opens, publishes, rolls back or retires generations of a pipeline
    takes this lock first, so that these happen one after another.

    Raises:
        UsageError: the pipeline has no tables yet.
    """
    row = connection.execute(
        "SELECT epoch, generation, previous FROM pointers WHERE pipeline = %s FOR UPDATE", (pipeline,)
    ).fetchone()
    if row is None:
        raise UsageError(f"pipeline {pipeline} has no tables yet: run `python -m serving_cache.migrate`")
    return row[0], row[1], row[2]


def check_token(connection: Connection, attempt: Attempt, *, exclusive: bool) -> State:
    """Hold the generation for this attempt until the transaction ends; returns its state.

    Shards of one run hold it together; whoever takes over waits for them, or
    they find a greater token here.

    Raises:
        Superseded: a greater token was handed out.
        UsageError: there is no such generation.
    """
    statement = "SELECT fencing_token, state FROM generations WHERE pipeline = %s AND generation = %s "
    row = connection.execute(
        sql.SQL(statement + ("FOR UPDATE" if exclusive else "FOR SHARE")), (attempt.pipeline, attempt.generation)
    ).fetchone()
    return token_checked(attempt, row)


def token_checked(attempt: Attempt, row: Any) -> State:
    """Judge the row (fencing_token, state) of an attempt's generation; see `check_token`."""
    if row is None:
        raise unknown_generation(attempt.pipeline, attempt.generation)
    if row[0] != attempt.token:
        raise Superseded(
            f"generation {attempt.generation} of {attempt.pipeline} was taken over (token {row[0]}, this attempt has "
            f"{attempt.token}): this attempt changed nothing and must stop"
        )
    return State(row[1])


def need_same_partitioning(connection: Connection, pipeline: str, partitioning: str) -> None:
    """Refuse a partitioning that is neither what readers read nor one that somebody agreed to.

    Raises:
        UsageError: the declaration's partitioning changed since the current generation.
    """
    row = connection.execute(
        "SELECT g.generation, g.partitioning, p.partitioning FROM pointers p "
        "JOIN generations g USING (pipeline, generation) WHERE pipeline = %s",
        (pipeline,),
    ).fetchone()
    if row is not None and partitioning not in row[1:]:
        raise UsageError(
            f"the partitioning of pipeline {pipeline} changed: it is {partitioning}, generation {row[0]} that readers "
            f"read has {row[1]}: put the declaration back, or agree to the change by `almanac repartition {pipeline}`; "
            "lookups are then answered again once the next generation is published"
        )


def need_staged(attempt: Attempt, state: State) -> None:
    """Refuse to write into a generation that has its outcome.

    Raises:
        UsageError: it is no longer staged.
    """
    if state is not State.STAGED:
        raise UsageError(
            f"generation {attempt.generation} of {attempt.pipeline} is {state} and nothing is added to it: "
            "start a new run"
        )


def unknown_generation(pipeline: str, generation: int) -> UsageError:
    """The error for a generation number that does not exist."""
    return UsageError(
        f"pipeline {pipeline} has no generation {generation}: `almanac generations {pipeline}` lists them"
    )
