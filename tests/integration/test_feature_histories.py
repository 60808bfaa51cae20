"""Offline, online after materialization, and online after a stream of the same events agree, value for value."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from features.materialize.plan import Asked
from tests.histories import NOON, VIEWS, Row, World, histories, offline, online, write_file

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of Feast's own imports

FEW = settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # each step of shrinking takes half a second
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, redis_url: str, postgres_url: str) -> Iterator[World]:
    with World.opened(tmp_path_factory.mktemp("histories"), redis_url, postgres_url) as found:
        yield found


@FEW
@given(histories("user_pushed"), histories("user_kept"), st.data())
def test_offline_materialized_and_streamed_features_agree(
    world: World, pushed: list[Row], kept: list[Row], data: st.DataObject
) -> None:
    """Files come in portions and runs follow each other; the stream delivers in the order of creation."""
    world.empty()
    histories = dict(zip(VIEWS, (pushed, kept), strict=True))
    moments = sorted(data.draw(st.lists(st.sampled_from([-400, -60, -1, 0, 1, 300, 360]), min_size=1, max_size=3)))
    for number, minute in enumerate(moments):
        at = NOON + timedelta(minutes=minute)
        for view, rows in histories.items():
            part = rows if number == len(moments) - 1 else rows[: data.draw(st.integers(0, len(rows)))]
            histories[view] = rows[len(part) :]
            write_file(world.folder, view, f"{number}", part)
        world.run.all(Asked(until=at))
        for view, source in world.sources.items():
            assert online(source, world.client, at) == offline(source, world.files(view), at)
    world.client.flushdb()
    for view, rows in zip(VIEWS, (pushed, kept), strict=True):
        world.push(view, [row for row in rows if row.minute <= moments[-1]])
        assert online(world.sources[view], world.client, at) == offline(world.sources[view], world.files(view), at)


@FEW
@given(histories("user_pushed"), st.data())
def test_a_stream_and_materialization_of_its_archive_in_any_order_agree(
    world: World, rows: list[Row], data: st.DataObject
) -> None:
    """Some events reach the online store before the files, some after, some only through the files."""
    world.empty()
    for view in VIEWS:
        write_file(world.folder, view, "first", [])
    before, after, never = (data.draw(st.sets(st.sampled_from(rows))) if rows else set() for _ in range(3))
    due = [row for row in rows if row.minute <= 0]
    world.push("user_pushed", [row for row in due if row in before and row not in never])
    write_file(world.folder, "user_pushed", "second", rows)
    world.run.all(Asked(until=NOON))
    world.push("user_pushed", [row for row in due if row in after and row not in never])
    source = world.sources["user_pushed"]
    assert online(source, world.client, NOON) == offline(source, world.files("user_pushed"), NOON)
