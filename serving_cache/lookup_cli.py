"""`almanac lookup`: ask the running lookup service, as a person or a script would."""

from __future__ import annotations

import csv
import io
from typing import Annotated, Any

import typer

REQUEST_SECONDS_MAX = 10.0
ERROR_CHARACTERS_MAX = 300


WANT_HELP = "Of a list: limit=5, exclude=<item>, or a condition such as filter='price<3'; any number of these."


def register(app: typer.Typer) -> None:
    """Add the command `lookup`."""

    @app.command()
    def lookup(
        pipeline: Annotated[str, typer.Argument(help="A declared pipeline, such as bikes.")],
        entities: Annotated[list[str] | None, typer.Argument(help="Keys of entities, such as cells 17 18.")] = None,
        lat: Annotated[float | None, typer.Option(help="Latitude of a point, in degrees; with --lon.")] = None,
        lon: Annotated[float | None, typer.Option(help="Longitude of a point, in degrees; with --lat.")] = None,
        max_stale: Annotated[str | None, typer.Option(help="Greatest age accepted: 5400, 90m, 2h, PT90M.")] = None,
        want: Annotated[list[str] | None, typer.Option(help=WANT_HELP)] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print the service's JSON.")] = False,
    ) -> None:
        """Look predictions up: `almanac lookup bikes 17 18`; of a grid also `--lat 51.5 --lon -0.1`."""
        from almanac.errors import Unavailable
        from almanac.output import print_json

        wanted = {**_wanted(want or []), **({} if max_stale is None else {"max_stale": max_stale})}
        found = ask(pipeline, entities or [], point=_point(lat, lon), wanted=wanted)
        if as_json:
            print_json(found)
        else:
            show(found.get("answers", [found]))
        refusals = found.get("refusals", [])
        if refusals:
            raise Unavailable(
                f"{len(refusals)} of {len(refusals) + len(found['answers'])} were not answered; "
                f"the first: {refusals[0]['detail']}"
            )


def ask(
    pipeline: str, entities: list[str], *, point: tuple[float, float] | None, wanted: dict[str, Any]
) -> dict[str, Any]:
    """One request to the service of the settings: an answer, or answers with refusals.

    Args:
        wanted: `max_stale`, and of lists `limit`, `exclude` and `filter`, as far as they are given.

    Raises:
        UsageError: neither entities nor a point are given, or the service says that they do not exist.
        Unavailable: the service does not answer, or refuses.
    """
    import httpx

    from almanac.errors import Unavailable, UsageError
    from almanac.settings import settings

    if bool(entities) == (point is not None):
        raise UsageError("name what to look up: entities, or --lat and --lon")
    url = settings().need("lookup_url").rstrip("/")
    try:
        with httpx.Client(base_url=url, timeout=REQUEST_SECONDS_MAX, trust_env=False) as client:
            path = f"/v1/{_segment(pipeline)}"
            query = {name: _joined(value) if isinstance(value, list) else value for name, value in wanted.items()}
            if point is not None:
                response = client.get(f"{path}/point", params={"lat": point[0], "lon": point[1], **query})
            elif len(entities) == 1:
                response = client.get(f"{path}/entities/{_segment(entities[0])}", params=query)
            else:
                response = client.post(f"{path}/entities:lookup", json={"entities": entities, **wanted})
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Unavailable(
            f"the lookup service at {url} does not answer ({error or type(error).__name__}): see `almanac status`"
        ) from None
    return _understood(response, url)


def _understood(response: Any, url: str) -> dict[str, Any]:
    from almanac.errors import Unavailable, UsageError

    try:
        found = response.json()
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Unavailable(
            f"what answers at {url} is not the lookup service (status {response.status_code}): check the URL"
        )
    if response.status_code == 200:
        return found
    detail = str(found.get("detail") or f"status {response.status_code}")[:ERROR_CHARACTERS_MAX]
    raise (UsageError if response.status_code < 500 else Unavailable)(detail)


def _point(lat: float | None, lon: float | None) -> tuple[float, float] | None:
    from almanac.errors import UsageError

    if lat is None and lon is None:
        return None
    if lat is None or lon is None:
        raise UsageError("a point needs both --lat and --lon")
    return lat, lon


def _wanted(words: list[str]) -> dict[str, Any]:
    """What of a list is wanted, as the service takes it.

    Raises:
        UsageError: a word is none of these.
    """
    from almanac.errors import UsageError

    found: dict[str, Any] = {}
    for word in words:
        name, sign, value = word.partition("=")
        if name not in ("limit", "exclude", "filter") or not sign or not value:
            raise UsageError(f"--want {word!r}: {WANT_HELP}")
        if name == "limit":
            found[name] = int(value) if value.isascii() and value.isdigit() else value
        else:
            found.setdefault(name, []).append(value)
    return found


def _joined(parts: list[str]) -> str:
    """Texts as a query has them: a comma between them, those that hold one in double quotes."""
    line = io.StringIO()
    csv.writer(line, lineterminator="", quoting=csv.QUOTE_ALL).writerow(parts)
    return line.getvalue()


def _segment(text: str) -> str:
    from urllib.parse import quote

    return quote(text, safe="")


def show(answers: list[dict[str, Any]]) -> None:
    """A table of answers, a line per entity, and what must be said about them below it."""
    from almanac.output import print_table

    outputs = list(answers[0]["outputs"])
    units = [answers[0]["outputs"][name]["unit"] for name in outputs]
    headings = [f"{name} [{unit}]" if unit else name for name, unit in zip(outputs, units, strict=True)]
    rows = [
        (
            answer["entity"],
            *(_cell(answer["outputs"][name]) for name in outputs),
            answer["verdict"],
            _age(answer["age_seconds"]),
            " from ".join(filter(None, (answer["source"], answer["place"]))),
            answer["generation"],
            answer["model"],
        )
        for answer in answers
    ]
    columns = ["entity", *headings, "verdict", "age", "source", "generation", "model"]
    print_table(columns, rows, title=f"{answers[0]['pipeline']}, epoch {answers[0]['epoch']}")
    remarks = dict.fromkeys(text for answer in answers for text in (answer["reason"], answer["clock"]) if text)
    for remark in remarks:
        typer.echo(remark)


def _cell(output: dict[str, Any]) -> str:
    if output.get("items") is not None:
        return "\n".join(f"{found['item']}  {found['score']:.4g}" for found in output["items"]) or "no items"
    if "items" in output:
        return str(output["verdict"])
    return output["verdict"] if output["value"] is None else f"{output['value']:.6g}"


def _age(seconds: float | None) -> str | None:
    from datetime import timedelta

    from almanac.ladder import span

    return None if seconds is None else span(timedelta(seconds=round(seconds)))
