"""Where Redis forgets rows after a while, materialization sends those again that never change: on real servers."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from almanac.clock import utc_now
from features.materialize.plan import Asked
from features.materialize.run import Materialization
from features.materialize.writer import keys_of
from tests.histories import NOON, USERS, VIEWS, Row, World, offline, online, pipeline, write_file

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of Feast's own imports


@pytest.fixture
def world(tmp_path: Path, redis_url: str, postgres_url: str) -> Iterator[World]:
    """A row of each user in each view's file; nothing online."""
    with World.opened(tmp_path, redis_url, postgres_url) as found:
        found.empty()
        for view in VIEWS:
            cells = (1.0, "n") if view == "user_kept" else (1.0, 0.5, 1, True, "n")
            write_file(
                tmp_path, view, "first", [Row(number, user, -10, cells) for number, user in enumerate(range(USERS))]
            )
        yield found


def test_where_redis_forgets_rows_those_that_never_change_are_sent_again_in_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("features.materialize.run.key_ttl_seconds", lambda store: 1000)
    with Materialization(pipeline(), world.settings) as run:
        assert run.all(Asked(until=NOON)).rows == 2 * USERS
        keys = [key for source in world.sources.values() for key in keys_of(source).of(list(range(USERS)))]
        for key in keys:
            assert 900 < world.client.ttl(key) <= 1000  # type: ignore[operator]
            world.client.expire(key, 400)
        assert run.all(Asked(until=NOON)).rows == 0
        later = utc_now() + timedelta(seconds=501)
        monkeypatch.setattr("features.materialize.run.utc_now", lambda: later)
        report = run.all(Asked(until=NOON))
        assert (report.rows, run.all(Asked(until=NOON)).rows) == (2 * USERS, 0)
        assert all(world.client.ttl(key) > 900 for key in keys)  # type: ignore[operator]
    for view, source in world.sources.items():
        assert online(source, world.client, NOON) == offline(source, world.files(view), NOON)
