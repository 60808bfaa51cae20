"""How the lookup's places tell a store that is silent from a process that is late, and follow a store's restart."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

from serving_cache.lookup.places import Guarded, Place, PlaceDown
from serving_cache.lookup.postgres_connections import CONNECTIONS_MAX, Lent
from serving_cache.lookup.postgres_place import PostgresPlace
from serving_cache.lookup.redis_link import RedisLink
from serving_cache.lookup.redis_place import RedisPlace
from tests.chaos.servers import Harmed, harmed_redis
from tests.silence import forgetful

LIMIT_SECONDS = 0.05
BUSY_SECONDS = 0.08  # that the process is busy elsewhere in each round of its event loop
CALLERS = 50
FORGOTTEN_SECONDS = 1.0


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[Harmed]:
    with harmed_redis(tmp_path / "redis-server") as found:
        yield found


async def while_busy(work: Awaitable[object]) -> object:
    """Await some work in an event loop that never has time."""
    task = asyncio.ensure_future(work)
    while not task.done():
        time.sleep(BUSY_SECONDS)
        await asyncio.sleep(0)
    return task.result()


@pytest.mark.parametrize("name", ["redis", "postgres"])
def test_a_late_process_blames_no_store(postgres_url: str, redis_url: str, name: str) -> None:
    async def run() -> None:
        place: Place
        if name == "redis":
            place = RedisPlace(redis_url, limit_seconds=LIMIT_SECONDS)
        else:
            place = PostgresPlace(postgres_url, limit_seconds=LIMIT_SECONDS)
        guarded = Guarded(place)
        try:
            for _ in range(3):
                await while_busy(guarded.ask(place.check()))
            assert guarded.breaker.closed
        finally:
            await place.close()

    asyncio.run(run())


def test_a_crowd_shares_one_connection_and_each_gets_his_own_answer(redis_url: str) -> None:
    async def run() -> None:
        link = RedisLink(redis_url, limit_seconds=LIMIT_SECONDS)
        asked = [link.ask(("ECHO", str(number)), ("ECHO", -number), entities=7) for number in range(1000)]
        answers = await while_busy(asyncio.gather(*asked))
        assert answers == [[str(number).encode(), str(-number).encode()] for number in range(1000)]
        [listing] = await link.ask(("CLIENT", "LIST"))
        assert listing.count(b"name=almanac-lookup") == 1
        await link.close()

    asyncio.run(run())


def test_a_silent_redis_is_noticed_by_all_and_forgotten_when_it_speaks(own_redis: Harmed) -> None:
    async def run() -> None:
        link = RedisLink(own_redis.url, limit_seconds=0.1)
        await link.ask(("PING",))
        with own_redis.frozen():
            asked = (link.ask(("PING",)) for _ in range(CALLERS))
            found = await asyncio.gather(*asked, return_exceptions=True)
            assert {str(each) for each in found} == {"redis did not answer within 100 ms"}
            assert {type(each) for each in found} == {PlaceDown}
            with pytest.raises(PlaceDown, match="redis cannot be reached"):
                await link.ask(("PING",))
        await _answered(link)
        await link.close()

    asyncio.run(run())


def test_a_restarted_redis_is_asked_on_a_new_connection_at_once(own_redis: Harmed) -> None:
    async def run() -> None:
        link = RedisLink(own_redis.url, limit_seconds=5.0)
        for _ in range(2):
            await link.ask(("PING",))
            with own_redis.away():
                pass
            assert await link.ask(("PING",), ("ECHO", "here")) == [b"PONG", b"here"]
        with own_redis.away(), pytest.raises(PlaceDown, match="redis cannot be reached"):
            await link.ask(("PING",))
        await link.close()

    asyncio.run(run())


def test_an_error_is_its_own_askers_alone(redis_url: str) -> None:
    async def run() -> None:
        link = RedisLink(redis_url, limit_seconds=5.0)
        wrong = [link.ask(("NONSENSE",)), link.ask(("GET", "\ud800")), link.ask(("GET", None))]
        right = [link.ask(("ECHO", number)) for number in range(CALLERS)]
        found = await asyncio.gather(*wrong, *right, return_exceptions=True)
        assert [isinstance(each, Exception) and not isinstance(each, PlaceDown) for each in found[:3]] == [True] * 3
        assert found[3:] == [[str(number).encode()] for number in range(CALLERS)]
        await link.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    "harm",
    [
        "DEALLOCATE ALL",  # as a pooler before Postgres forgets what was prepared
        "SELECT pg_terminate_backend(pg_backend_pid())",
    ],
)
def test_a_connection_of_no_use_is_replaced_within_the_read(postgres_url: str, harm: str) -> None:
    async def run() -> None:
        place = PostgresPlace(postgres_url, limit_seconds=1.0)
        for _ in range(7):  # the driver prepares a statement that it sees often
            await place.check()
        with suppress(psycopg.Error, PlaceDown):
            await place._connections.run(lambda connection: connection.rows(harm))  # type: ignore[arg-type]
        for _ in range(3):
            await place.check()
        await place.close()

    asyncio.run(run())


def test_connections_that_a_firewall_forgot_cost_one_read(postgres_url: str) -> None:
    async def run() -> None:
        async with forgetful(postgres_url) as way:
            place = PostgresPlace(way.url, limit_seconds=FORGOTTEN_SECONDS)
            while len(place._connections._idle) < CONNECTIONS_MAX:
                await asyncio.gather(*(place._connections.run(_takes_a_moment) for _ in range(CONNECTIONS_MAX)))
            way.forget()
            with pytest.raises(PlaceDown, match="postgres did not answer within"):
                await place.check()
            for _ in range(CONNECTIONS_MAX):
                await place.check()
            await place.close()

    asyncio.run(run())


def test_a_postgres_that_hangs_is_tried_once_for_its_whole_limit(postgres_url: str) -> None:
    async def run() -> None:
        async with forgetful(postgres_url) as way:
            place = PostgresPlace(way.url, limit_seconds=FORGOTTEN_SECONDS)
            way.hung = True
            with pytest.raises(PlaceDown, match="postgres cannot be reached") as said:
                await place.check()
            assert "no connection within" in said.value.detail
            assert way.opened <= 2  # a machine that is late may have missed the first one's answer
            way.forget()
            way.hung = False
            await place.check()
            await place.close()

    asyncio.run(run())


def test_a_plan_that_a_migration_made_useless_is_made_again_within_the_read(postgres_url: str) -> None:
    async def run() -> None:
        place = PostgresPlace(postgres_url, limit_seconds=FORGOTTEN_SECONDS)

        async def ask(connection: Lent) -> list[object]:
            return await connection.rows("SELECT * FROM migrated_meanwhile")

        with psycopg.connect(postgres_url, autocommit=True) as admin:
            admin.execute("CREATE TABLE migrated_meanwhile (a integer)")
            admin.execute("INSERT INTO migrated_meanwhile VALUES (7)")
            for _ in range(7):  # the driver prepares a statement that it sees often
                assert await place._connections.run(ask) == [(7,)]
            admin.execute("ALTER TABLE migrated_meanwhile ALTER a TYPE text, ADD b integer DEFAULT 8")
            assert await place._connections.run(ask) == [("7", 8)]
            admin.execute("DROP TABLE migrated_meanwhile")
        await place.close()

    asyncio.run(run())


def test_a_redis_that_loads_its_data_is_said_to() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while b"CLIENT" in (asked := await reader.read(4096)):
            writer.write(b"+OK\r\n" * asked.count(b"SETINFO") + b"+OK\r\n" * asked.count(b"SETNAME"))
        writer.write(b"-LOADING Redis is loading the dataset in memory\r\n")
        await writer.drain()
        writer.close()

    async def run() -> None:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            link = RedisLink(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}", limit_seconds=5.0)
            with pytest.raises(PlaceDown, match="redis cannot be reached") as said:
                await link.ask(("PING",))
            assert "loading the dataset" in said.value.detail
            await link.close()

    asyncio.run(run())


async def _takes_a_moment(connection: Lent) -> None:
    await connection.rows("SELECT pg_sleep(0.05)")


async def _answered(link: RedisLink) -> None:
    """Wait until Redis answers: it takes up its work again when it likes."""
    for _ in range(100):
        try:
            await link.ask(("PING",))
        except PlaceDown:
            await asyncio.sleep(0.05)
        else:
            return
    raise AssertionError("redis does not answer again")
