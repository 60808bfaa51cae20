"""What stands at `/`: for a browser a page that helps to begin, for a program the same as JSON. No assets."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any
from urllib.parse import quote

from almanac.partitioning import Grid
from almanac.pipeline import Pipeline, Ranking

HTML = "text/html; charset=utf-8"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
PIPELINES_SHOWN_MAX = 100
OUTPUTS_SHOWN_MAX = 8

SERVICE_PATHS = {
    "/openapi.json": "the interface, as OpenAPI 3.1",
    "/v1/pipelines": "the declared pipelines",
    "/readyz": "which places answer",
    "/metrics": "metrics, for Prometheus",
}

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; color: #222;
  background: #fff }
h1 { margin-bottom: 0 } h2 { margin: 2rem 0 .3rem } a { color: #0a58a8 }
code { font: 14px/1.5 ui-monospace, monospace; background: #f2f2f2; padding: .1rem .3rem; overflow-wrap: anywhere }
li { margin: .2rem 0 }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd } a { color: #7db8f0 }
  code { background: #2a2a2a } }
"""


def prefers_html(accept: str) -> bool:
    """Whether an Accept header names HTML and does not want JSON more: browsers do, programs do not."""
    wanted: dict[str, float] = {}
    for part in accept.split(",")[:32]:
        kind, *parameters = (word.strip() for word in part.lower().split(";"))
        wanted[kind] = next((_quality(p[2:]) for p in parameters if p.startswith("q=")), 1.0)
    html = wanted.get("text/html", 0.0)
    return html > 0 and html >= wanted.get("application/json", 0.0)


def _quality(text: str) -> float:
    try:
        return float(text) if text.isascii() else 0.0
    except ValueError:
        return 0.0


def examples(pipeline: Pipeline) -> list[str]:
    """Paths that look something of this pipeline up."""
    base = f"/v1/{quote(pipeline.name, safe='')}"
    if not isinstance(pipeline.partitions, Grid):
        name = "17" if pipeline.partitions.key_type is int else f"some-{quote(pipeline.entity, safe='')}"
        some = f"{base}/entities/{name}"
        return [some] if pipeline.ranking is None else [some, *(f"{some}?{wish}" for wish in _wishes(pipeline.ranking))]
    grid = pipeline.partitions
    middle = grid.rows // 2 * grid.cols + grid.cols // 2
    lat, lon = grid.position(middle)
    return [
        f"{base}/entities/{middle}",
        f"{base}/entities/{middle}?max_stale=90m",
        f"{base}/point?lat={lat:g}&lon={lon:g}",
    ]


def _wishes(ranking: Ranking) -> list[str]:
    """Queries that choose from a list."""
    return ["limit=3", *(f"filter={quote(name, safe='')}%3E0" for name in ranking.attributes[:1])]


def index_json(pipelines: Iterable[Pipeline]) -> dict[str, Any]:
    """The page for programs."""
    return {
        "service": "almanac lookup",
        "pipelines": {found.name: {"examples": examples(found)} for found in pipelines},
        "paths": SERVICE_PATHS,
    }


def index_html(pipelines: Iterable[Pipeline]) -> bytes:
    """The page for people."""
    declared = list(pipelines)
    sections = [_section(pipeline) for pipeline in declared[:PIPELINES_SHOWN_MAX]]
    if not sections:
        sections = ["<p>No pipeline is declared.</p>"]
    if len(declared) > PIPELINES_SHOWN_MAX:
        sections.append(f"<p>… and {len(declared) - PIPELINES_SHOWN_MAX} more.</p>")
    links = "".join(f"<li>{_link(path)} {escape(text)}</li>" for path, text in SERVICE_PATHS.items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Almanac</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{_STYLE}</style></head><body><h1>Almanac</h1>"
        "<p>Predictions computed beforehand and looked up. Every answer says how old it is, where it came from and why."
        f"</p>{''.join(sections)}<h2>This service</h2><ul>{links}</ul></body></html>\n"
    ).encode()


def _section(pipeline: Pipeline) -> str:
    names = [f"{output.name} [{output.unit}]" if output.unit else output.name for output in pipeline.outputs]
    shown = ", ".join(names[:OUTPUTS_SHOWN_MAX]) + (", …" if len(names) > OUTPUTS_SHOWN_MAX else "")
    lookups = "".join(f"<li>{_link(path)}</li>" for path in examples(pipeline))
    many = f"POST /v1/{pipeline.name}/entities:lookup"
    return (
        f"<h2>{escape(pipeline.name)}</h2><p>{escape(pipeline.description)}</p>"
        f"<p>Predicts {escape(shown)} for each {escape(pipeline.entity)}. "
        f"{_link(f'/v1/pipelines/{quote(pipeline.name)}', 'Declaration and current generation')}.</p>"
        f"<ul>{lookups}<li><code>{escape(many)}</code> with <code>{{&quot;entities&quot;: […]}}</code></li></ul>"
    )


def _link(path: str, text: str | None = None) -> str:
    return f'<a href="{escape(path)}">{escape(text) if text else f"<code>{escape(path)}</code>"}</a>'
