"""Checks of features, and what was learned of them, in Postgres: written by jobs, read by the monitor and by people."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec

from almanac.clock import need_utc
from almanac.closing import Closing
from almanac.feature_checks import Bounds, Check, FeatureFound, Learned, Profile, Skew, ViewFound, natural
from serving_cache.postgres_client import Client, Connection

KEPT = timedelta(days=90)
"""Checks older than this are let go."""
HISTORY_MAX = 400
"""Checks that a history reaches back."""

_VIEW_COLUMNS = (
    "view, ttl_seconds, pushed, offline_newest, online_newest, sampled, missing, expired, in_flight, expectations, "
    "refused, bounds_version"
)
_FEATURE_COLUMNS = "view, feature, skew, profile, drift, drift_max"
_LEARNED_COLUMNS = "view, version, learned_at, start_at, end_at, rows, parts, definition, how, bounds"


class Moved(msgspec.Struct, frozen=True, kw_only=True):
    """What a feature was at one check of the past."""

    checked_at: datetime
    mean: float | None
    drift: float | None
    skew: float | None


class FeatureChecks(Closing):
    """The checks of all pipelines, over one connection that opens when first needed.

    Every method raises `Unavailable` when Postgres does not answer in time, and
    `UsageError` when the database was not migrated.

    Args:
        url: postgresql:// URL, or a client that is shared.
    """

    def __init__(self, url: str) -> None:
        self._client = Client(url)

    def close(self) -> None:
        """Close the connection; the next use opens another."""
        self._client.close()

    def keep(self, check: Check) -> None:
        """Write a check, and let go of those that are past `KEPT`."""
        with self._client.transaction() as connection:
            row = connection.execute(
                "INSERT INTO feature_checks (pipeline, service, checked_at, sampled, seconds) "
                "VALUES (%s, %s, %s, %s, %s) RETURNING id",
                (check.pipeline, check.service, check.checked_at, check.sampled, check.seconds),
            ).fetchone()
            number = None if row is None else row[0]
            _insert(
                connection,
                f"feature_check_views (check_id, {_VIEW_COLUMNS})",
                [
                    (
                        number, one.view, one.ttl_seconds, one.pushed, one.offline_newest, one.online_newest,
                        one.sampled, one.missing, one.expired, one.in_flight, one.expectations, _json(one.refused),
                        one.bounds_version,
                    )
                    for one in check.views
                ],
            )  # fmt: skip
            _insert(
                connection,
                f"feature_check_features (check_id, {_FEATURE_COLUMNS})",
                [
                    (number, one.view, one.feature, _json(one.skew), _json(one.profile), one.drift, one.drift_max)
                    for one in check.features
                ],
            )
            connection.execute(
                "DELETE FROM feature_checks WHERE pipeline = %s AND checked_at < %s",
                (check.pipeline, check.checked_at - KEPT),
            )

    def newest(self, pipeline: str) -> Check | None:
        """The newest check of a pipeline; None if there is none."""
        found = self._client.query(
            "SELECT id, service, checked_at, sampled, seconds FROM feature_checks WHERE pipeline = %s "
            "ORDER BY checked_at DESC, id DESC LIMIT 1",
            (pipeline,),
        )
        if not found:
            return None
        number, service, checked_at, sampled, seconds = found[0]
        views = self._client.query(
            f"SELECT {_VIEW_COLUMNS} FROM feature_check_views WHERE check_id = %s",  # noqa: S608
            (number,),
        )
        features = self._client.query(
            f"SELECT {_FEATURE_COLUMNS} FROM feature_check_features WHERE check_id = %s",  # noqa: S608
            (number,),
        )
        return Check(
            pipeline=pipeline,
            service=service,
            checked_at=need_utc(checked_at),
            sampled=sampled,
            seconds=seconds,
            views=tuple(sorted((_view(row) for row in views), key=lambda one: natural(one.view))),
            features=tuple(
                sorted((_feature(row) for row in features), key=lambda one: (natural(one.view), natural(one.feature)))
            ),
        )

    def history(self, pipeline: str, since: datetime) -> dict[tuple[str, str], list[Moved]]:
        """What each feature was at the checks since a moment, `HISTORY_MAX` at most, oldest first."""
        rows = self._client.query(
            "SELECT f.view, f.feature, c.checked_at, (f.profile ->> 'mean')::float8, f.drift, "
            "(f.skew ->> 'unequal')::float8 / nullif((f.skew ->> 'compared')::float8, 0) "
            "FROM feature_check_features f JOIN (SELECT id, checked_at FROM feature_checks WHERE pipeline = %s "
            "AND checked_at >= %s ORDER BY checked_at DESC LIMIT %s) c ON c.id = f.check_id "
            "ORDER BY c.checked_at, c.id",
            (pipeline, since, HISTORY_MAX),
        )
        found: dict[tuple[str, str], list[Moved]] = {}
        for view, feature, checked_at, mean, drift, skew in rows:
            moved = Moved(checked_at=need_utc(checked_at), mean=mean, drift=drift, skew=skew)
            found.setdefault((view, feature), []).append(moved)
        return found

    def learned(self, pipeline: str) -> dict[str, Learned]:
        """The newest version of what was learned of each view."""
        rows = self._client.query(
            f"SELECT DISTINCT ON (view) {_LEARNED_COLUMNS} FROM feature_bounds WHERE pipeline = %s "  # noqa: S608
            "ORDER BY view, version DESC",
            (pipeline,),
        )
        return {row[0]: _learned(row) for row in rows}

    def keep_learned(self, pipeline: str, learned: Learned) -> Learned:
        """Write what was learned of a view as its next version; returns it with that version."""
        with self._client.transaction() as connection:
            connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", (f"almanac.feature_bounds.{pipeline}",))
            row = connection.execute(
                "SELECT coalesce(max(version), 0) + 1 FROM feature_bounds WHERE pipeline = %s AND view = %s",
                (pipeline, learned.view),
            ).fetchone()
            made = msgspec.structs.replace(learned, version=int(row[0]) if row else 1)
            _insert(
                connection,
                f"feature_bounds (pipeline, {_LEARNED_COLUMNS})",
                [
                    (
                        pipeline, made.view, made.version, made.learned_at, made.start, made.end, made.rows, made.parts,
                        made.definition, made.how, _json(made.bounds),
                    )
                ],
            )  # fmt: skip
        return made


def _insert(connection: Connection, into: str, rows: Sequence[tuple[Any, ...]]) -> None:
    if rows:
        places = ", ".join(["%s"] * len(rows[0]))
        with connection.cursor() as cursor:
            cursor.executemany(f"INSERT INTO {into} VALUES ({places})", rows)  # noqa: S608 - our own words


def _json(value: Any) -> str | None:
    return None if value is None else msgspec.json.encode(value).decode()


def _view(row: Any) -> ViewFound:
    names = [name.strip() for name in _VIEW_COLUMNS.split(",")]
    values = dict(zip(names, row, strict=True))
    for name in ("offline_newest", "online_newest"):
        values[name] = None if values[name] is None else need_utc(values[name])
    return ViewFound(**{**values, "refused": tuple(values["refused"])})


def _feature(row: Any) -> FeatureFound:
    view, feature, skew, profile, drift, drift_max = row
    return FeatureFound(
        view=view,
        feature=feature,
        skew=None if skew is None else msgspec.convert(skew, Skew),
        profile=None if profile is None else msgspec.convert(profile, Profile),
        drift=drift,
        drift_max=drift_max,
    )


def _learned(row: Any) -> Learned:
    view, version, learned_at, start, end, rows, parts, definition, how, bounds = row
    return Learned(
        view=view,
        version=version,
        learned_at=need_utc(learned_at),
        start=need_utc(start),
        end=need_utc(end),
        rows=rows,
        parts=parts,
        definition=definition,
        how=how,
        bounds=msgspec.convert(bounds, dict[str, Bounds]),
    )
