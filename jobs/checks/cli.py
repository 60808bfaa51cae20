"""Commands about features: `features`, `skew`."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from almanac.feature_checks import Check
    from almanac.pipeline import Pipeline

EXIT_TROUBLE = 1


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("features")(features)
    app.command("skew")(skew)


def features(
    pipeline: str = typer.Argument("", help="Default: every declared pipeline."),
    html: bool = typer.Option(False, "--html", help="Write the page of each pipeline, and print where it is."),
    check: bool = typer.Option(False, "--check", help="Check now, as the schedule does."),
    learn: bool = typer.Option(False, "--learn", help="Check now, with bounds learned anew from the training window."),
    as_json: bool = typer.Option(False, "--json", help="Machine-readable."),
) -> None:
    """Show which features each pipeline uses, how old they are, and how they move."""
    from almanac.clock import utc_now
    from almanac.declarations import pipeline as declared
    from almanac.declarations import pipelines
    from almanac.output import print_json
    from almanac.settings import settings
    from jobs.checks.integrity import check_features
    from jobs.checks.page import write_page
    from serving_cache.feature_checks import FeatureChecks

    chosen = [declared(pipeline)] if pipeline else list(pipelines().values())
    with FeatureChecks(settings().need("postgres_url")) as kept:
        found: dict[str, Check | None] = {}
        for one in chosen:
            if check or learn:
                found[one.name] = check_features(one, settings(), now=utc_now(), relearn=learn)
            else:
                found[one.name] = kept.newest(one.name)
        now = utc_now()
        if as_json:
            print_json([_row(one, found[one.name], now) for one in chosen])
            return
        for one in chosen:
            newest = found[one.name]
            if newest is None:
                typer.echo(_unchecked(one))
                continue
            _print_views(newest, now)
            if pipeline:
                _print_features(newest)
            _print_troubles(one, newest, now)
            if html:
                typer.echo(str(write_page(one, settings(), newest, kept, now)))


def skew(
    pipeline: str,
    sample: int = typer.Option(0, min=0, help="Entities to compare; default: as declared."),
    as_json: bool = typer.Option(False, "--json", help="Machine-readable."),
) -> None:
    """Compare online features of some entities with the offline ones of the same moments; differences end with 1."""
    from almanac.clock import utc_now
    from almanac.declarations import pipeline as declared
    from almanac.output import print_json, print_table
    from almanac.settings import settings
    from jobs.checks.integrity import check_features
    from jobs.checks.page import page_of

    found = declared(pipeline)
    check = check_features(found, settings(), now=utc_now(), sample=sample or None)
    rows = [(one, one.skew) for one in check.features if one.skew is not None]
    if as_json:
        import msgspec

        print_json(
            {
                "pipeline": found.name,
                "sampled": check.sampled,
                "features": [
                    {"view": one.view, "feature": one.feature, **msgspec.to_builtins(compared)}
                    for one, compared in rows
                ],
            }
        )
    else:
        print_table(
            ["view", "feature", "compared", "unequal", "only online", "only offline", "greatest", "mean"],
            [
                [
                    one.view, one.feature, f"{s.compared:,}", f"{s.unequal:,}", s.only_online, s.only_offline,
                    _short(s.greatest), _short(s.mean),
                ]
                for one, s in rows
            ],
            title=f"{found.name}: {check.sampled:,} entities, online beside offline at the same moments",
        )  # fmt: skip
        for view in check.views:
            if view.in_flight:
                typer.echo(f"{view.view}: {view.in_flight} rows came by events that are not in the offline store yet")
            if view.missing:
                typer.echo(f"{view.view}: {view.missing} of {view.sampled} entities have no online row")
        typer.echo(f"the page: {page_of(settings(), found.name)}")
    if any(compared.unequal for _, compared in rows):
        raise typer.Exit(EXIT_TROUBLE)


def _short(value: float | None) -> str | None:
    return None if value is None else f"{value:.5g}"


def _unchecked(pipeline: Pipeline) -> str:
    return (
        f"features of {pipeline.name} were not checked yet: `almanac features {pipeline.name} --check` does it, and so "
        f"does the DAG {pipeline.name}_integrity"
    )


def _row(pipeline: Pipeline, check: Check | None, now: datetime) -> dict[str, Any]:
    import msgspec

    from almanac.feature_checks import troubles, view_state

    if check is None:
        return {"pipeline": pipeline.name, "service": pipeline.features, "checked_at": None}
    found: dict[str, Any] = msgspec.to_builtins(check)
    for view, said in zip(check.views, found["views"], strict=True):
        said["state"] = view_state(view, now)
    return {**found, "to_look_at": troubles(check, pipeline.integrity.skew_max, now)}


def _print_views(check: Check, now: datetime) -> None:
    from almanac.feature_checks import age_of_view, view_state, words
    from almanac.output import print_table

    rows = []
    for view in check.views:
        mine = [one for one in check.features if one.view == view.view]
        age = age_of_view(view, now)
        drifts = [one.drift for one in mine if one.drift is not None]
        shares = [share for one in mine if one.skew is not None and (share := one.skew.share) is not None]
        rows.append(
            [
                view.view, len(mine), view_state(view, now), None if age is None else words(age),
                f"{max(shares):.2%}" if shares else None, f"{max(drifts):.2f}" if drifts else None,
                f"{view.expectations - len(view.refused)} of {view.expectations}",
            ]
        )  # fmt: skip
    print_table(
        ["view", "features", "state", "newest row", "most skew", "most drift", "expectations met"],
        rows,
        title=f"{check.pipeline} uses {check.service}; checked {words(now - check.checked_at)} ago",
    )


def _print_features(check: Check) -> None:
    from almanac.output import print_table

    rows = []
    for one in check.features:
        profile, share = one.profile, one.skew.share if one.skew else None
        nulls = None if profile is None or profile.null_share is None else f"{profile.null_share:.1%}"
        drift = None if one.drift is None else f"{one.drift:.2f}"
        usual = None if one.drift_max is None else f"{one.drift_max:.2f}"
        mean = None if profile is None else _short(profile.mean)
        rows.append([one.view, one.feature, mean, nulls, drift, usual, None if share is None else f"{share:.2%}"])
    print_table(["view", "feature", "mean", "nulls", "drift", "usual to", "skew"], rows)


def _print_troubles(pipeline: Pipeline, check: Check, now: datetime) -> None:
    from almanac.feature_checks import troubles

    for line in troubles(check, pipeline.integrity.skew_max, now):
        typer.echo(f"! {line}")
