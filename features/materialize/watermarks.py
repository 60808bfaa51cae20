"""Watermarks of materialization: in Postgres, and a token beside the values in Redis that says they are still there."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

import psycopg

from almanac.clock import at_micros, micros_of, need_utc
from almanac.errors import Unavailable, UsageError
from almanac.postgres_url import postgres_address
from features.materialize.plan import Watermark

if TYPE_CHECKING:
    from redis import Redis

CONNECT_SECONDS_MAX = 5
STATEMENT_SECONDS_MAX = 60
LOCK_SECONDS_MAX = 10


def token_key(pipeline: str) -> str:
    """Redis key of a hash: `<view>:<partition>` -> the token of the materialization that wrote last."""
    return f"almanac:materialized:{pipeline}"


def new_token(sent_at: datetime | None) -> str:
    """A token that no other materialization has; it says when all rows of its partitions were last sent, if known."""
    return uuid.uuid4().hex + ("" if sent_at is None else f"@{micros_of(sent_at)}")


def sent_at(token: str) -> datetime | None:
    """When all rows were last sent; None of a token that does not say it."""
    micros = token.partition("@")[2]
    return at_micros(int(micros)) if micros else None


def tokens(client: Redis, pipeline: str, view: str, partitions: int) -> dict[int, str]:
    """The tokens that Redis holds of a view, by partition."""
    found: Any = client.hmget(token_key(pipeline), [f"{view}:{number}" for number in range(partitions)])
    return {number: token.decode() for number, token in enumerate(found) if token is not None}


# One that is not there is not put: an emptied store must not look filled.
_DISTRUST = """
for at = 2, #ARGV do
  if redis.call('HEXISTS', KEYS[1], ARGV[at]) == 1 then redis.call('HSET', KEYS[1], ARGV[at], ARGV[1]) end
end
"""


def distrust(client: Redis, pipeline: str, view: str, partitions: Sequence[int]) -> None:
    """Have the next materialization send these partitions whole, for some of their rows are gone."""
    fields = [f"{view}:{number}" for number in partitions]
    client.eval(_DISTRUST, 1, token_key(pipeline), new_token(None), *fields)


def put_token(client: Redis, pipeline: str, view: str, partitions: Sequence[int], token: str) -> None:
    """Note in Redis that what was written before this is there."""
    client.hset(token_key(pipeline), mapping={f"{view}:{number}": token for number in partitions})


def read(url: str, pipeline: str, views: Sequence[str], partitions: int) -> dict[str, dict[int, Watermark]]:
    """The watermarks of the pipeline's views, by partition; those of other views and partitions are dropped.

    Raises:
        Unavailable: Postgres does not answer.
        UsageError: the database was not migrated.
    """
    found: dict[str, dict[int, Watermark]] = {view: {} for view in views}
    with _connected(url) as connection:
        connection.execute(
            "DELETE FROM feature_watermarks WHERE pipeline = %s AND (view <> ALL (%s) OR partition >= %s)",
            (pipeline, list(views), partitions),
        )
        rows = connection.execute(
            "SELECT view, partition, definition, through, files_at, token FROM feature_watermarks WHERE pipeline = %s",
            (pipeline,),
        )
        for view, number, definition, through, files_at, token in rows:
            found[view][number] = Watermark(
                definition=definition,
                through=need_utc(through),
                files_at=need_utc(files_at),
                token=token,
                sent_at=sent_at(token),
            )
    return found


def move(url: str, pipeline: str, view: str, partitions: Sequence[int], to: Watermark) -> None:
    """Move the watermarks of some partitions on, all or none.

    Of two runs at once the one that ends later stands. It may have read less: then rows are read again,
    and at worst all of them, because Redis has the other one's token. None is ever left out.

    Raises:
        Unavailable: Postgres does not answer.
        UsageError: the database was not migrated.
    """
    with _connected(url) as connection:
        connection.execute(
            "INSERT INTO feature_watermarks AS held (pipeline, view, partition, definition, through, files_at, token) "
            "SELECT %s, %s, number, %s, %s, %s, %s FROM unnest(%s::integer[]) AS number ORDER BY number "
            "ON CONFLICT (pipeline, view, partition) DO UPDATE SET definition = excluded.definition, "
            "through = excluded.through, files_at = excluded.files_at, token = excluded.token, "
            "written_at = clock_timestamp()",
            (pipeline, view, to.definition, to.through, to.files_at, to.token, list(partitions)),
        )


@contextmanager
def _connected(url: str) -> Iterator[psycopg.Connection[Any]]:
    """A transaction in a connection of its own: a materialization asks Postgres a few times in minutes."""
    limits = {"statement": STATEMENT_SECONDS_MAX, "lock": LOCK_SECONDS_MAX}
    options = " ".join(f"-c {name}_timeout={seconds}s" for name, seconds in limits.items())
    given = postgres_address(url).parameters.get("options")
    try:
        with psycopg.connect(
            url, connect_timeout=CONNECT_SECONDS_MAX, options=f"{options} {given or ''}".strip()
        ) as connection:
            yield connection
    except psycopg.errors.UndefinedTable as error:
        raise UsageError(
            f"the database lacks a table ({_first_line(error)}): run `python -m serving_cache.migrate`"
        ) from error
    except psycopg.Error as error:
        raise Unavailable(
            f"Postgres did not answer for watermarks ({_first_line(error)}): see `almanac status`"
        ) from error


def _first_line(error: object) -> str:
    return next(iter(str(error).splitlines()), "no answer")
