"""The OpenAPI document of the service; `python -m serving_cache.lookup.openapi` prints docs/openapi.json.

Made from the structs that are sent, so that document and service cannot part;
a test holds the committed copy to it.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import msgspec

from almanac import __version__
from serving_cache.lookup.answers import AnswerJson, ManyJson
from serving_cache.lookup.choosing import CONDITIONS_MAX, EXCLUDED_MAX
from serving_cache.lookup.parsing import DURATION_FORMS, DURATION_TEXT_MAX, MAX_STALE_LIMIT
from serving_cache.lookup.web import BODY_BYTES_MAX, ENTITIES_MAX, PROBLEM_JSON

_FIELDS = {
    "entity": "The entity's key: a cell's number, a user's id.",
    "point": "Centre of the cell, for pipelines on a grid.",
    "outputs": "One entry per declared output, by name.",
    "verdict": "fresh, stale, expired or missing: how far the prediction can be stood behind.",
    "source": "Which runtime made the prediction: stream, fresh (computed at a lookup), batch or default.",
    "place": "Where its bytes came from: redis or postgres; null for what this request computed and for the default.",
    "rung": "How far down the ladder it stands: 1 overlay or current generation, 2 computed for this request, "
    "3 previous generation, 4 default.",
    "reason": "Why no better prediction or place answered; null when there is nothing to explain.",
    "as_of": "The data time that the prediction speaks from.",
    "computed_at": "When it was scored.",
    "age_seconds": "Now minus as_of.",
    "generation": "The generation that it belongs to, or whose model vouches for it.",
    "epoch": "Grows with each move of the pipeline's pointer; all answers of one request have the same.",
    "model": "The model version that made it.",
    "clock": "Says so when its observations are a replayed file's; null for real time.",
    "valid_at": "The moment that the output speaks about; null for an output without a horizon.",
    "value": "Null where the output's verdict is expired or missing.",
}
_TIMES = ("as_of", "computed_at", "valid_at")
_DURATION_TEXT = (
    "The greatest age accepted: seconds, or a duration such as 90m, 2h, 1d, P1D or PT90M; "
    f"0 to {MAX_STALE_LIMIT.days:,} days in all."
)
_ALLOW = {"Allow": {"schema": {"type": "string"}, "description": "Methods, with commas between them."}}
_DURATION = {
    "description": _DURATION_TEXT,
    "examples": [5400, "5400", "90m", "2h", "1d", "P1D", "PT90M", "1e5"],
    "anyOf": [
        {"type": "number", "minimum": 0, "maximum": MAX_STALE_LIMIT.total_seconds()},
        *({"type": "string", "maxLength": DURATION_TEXT_MAX, "pattern": f"^{form}$"} for form in DURATION_FORMS),
    ],
}


_LIMIT = (
    "Of a list: how many items; as many as are declared unless given, at most as many as a list keeps "
    "(`ranking.length` and `ranking.kept` of /v1/pipelines/{name})."
)
_EXCLUDE = (
    f"Of a list: items that are not wanted, at most {EXCLUDED_MAX:,}, with commas between them; one that holds a comma "
    "in double quotes."
)
_FILTER = (
    f"Of a list: at most {CONDITIONS_MAX} conditions on its items' declared attributes (`ranking.attributes`), with "
    "commas between them, such as price<3. All must hold; of < <= > >= = !=. In an address < and > are percent-encoded."
)
_TEXTS = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}, {"type": "null"}]}


_RANKING = {
    "type": ["object", "null"],
    "description": "Where predictions are lists: what an item is called, how many are answered unless `limit` says "
    "otherwise, how many a list keeps, and the attributes that answers carry. Null where they are numbers.",
    "properties": {
        "item": {"type": "string"},
        "length": {"type": "integer"},
        "kept": {"type": "integer"},
        "attributes": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["item", "length", "kept", "attributes"],
}


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema, "type": [schema["type"], "null"]}


def _object(*required: str, **properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required or properties)}


_TEXT, _NUMBER, _WHOLE = {"type": "string"}, {"type": "number"}, {"type": "integer"}
_PIPELINE = {
    "name": _TEXT,
    "description": _TEXT,
    "entity": {**_TEXT, "description": "What a key names, such as cell_id."},
    "grid": _nullable(_object(rows=_WHOLE, cols=_WHOLE, north=_NUMBER, west=_NUMBER, step=_NUMBER)),
    "outputs": {"type": "array", "items": _object(name=_TEXT, unit=_TEXT, horizon_seconds=_nullable(_NUMBER))},
    "ranking": _RANKING,
    "fresh_for_seconds": _NUMBER,
    "usable_for_seconds": _NUMBER,
    "model": _TEXT,
    "schedule": {**_TEXT, "description": "A cron expression, in UTC."},
    "stream": {"type": "boolean", "description": "Whether events correct its predictions."},
    "fresh": _nullable(_object(deadline_seconds=_NUMBER, concurrency=_WHOLE)),
    "default": {
        "description": "What is answered where nothing better may be: a number by output, or a word where lists are.",
        "anyOf": [{"type": "object", "additionalProperties": _NUMBER}, _TEXT, {"type": "null"}],
    },
}
"""As `serving_cache.lookup.summaries` gives it."""
_STATE = {
    "current": {**_nullable({"type": "object"}), "description": "The current generation, as far as a place knows it."},
    "place": {**_nullable(_TEXT), "description": "Which place said so."},
    "reason": {**_nullable(_TEXT), "description": "Why there is no current generation, or why no place knows one."},
}
"""Of one pipeline alone."""


def document() -> dict[str, Any]:
    """The whole document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Almanac lookup",
            "version": __version__,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "description": "Answers with the freshest prediction it can stand behind, and says how old it is and where "
            "it came from. Errors are application/problem+json (RFC 9457). No answer is older than max_stale, or "
            "older than the pipeline declares usable; a refusal (503) carries no prediction.",
        },
        "paths": _with_options(_paths()),
        "components": {"schemas": _schemas(), "responses": _problems()},
    }


def _with_options(paths: dict[str, Any]) -> dict[str, Any]:
    """Each path answers OPTIONS with the methods that it has."""
    none = {"description": "No body; Allow names the path's methods.", "headers": _ALLOW}
    for methods in paths.values():
        (operation,) = methods.values()
        methods["options"] = {
            "operationId": f"{operation['operationId']}Options",
            "summary": "Which methods the path has",
            "parameters": [one for one in operation["parameters"] if one["in"] == "path"],
            "responses": {"204": none, **_errors(404)},
        }
    return paths


def document_bytes() -> bytes:
    """The document as it is sent and committed."""
    return (json.dumps(document(), indent=2, ensure_ascii=False) + "\n").encode()


def _schemas() -> dict[str, Any]:
    _, found = msgspec.json.schema_components([AnswerJson, ManyJson], ref_template="#/components/schemas/{name}")
    renamed = json.loads(json.dumps(found).replace("Json", ""))
    schemas = {name.replace("Json", ""): schema for name, schema in renamed.items()}
    for schema in schemas.values():
        schema.pop("title", None)
        for name, field in schema.get("properties", {}).items():
            if name in _FIELDS:
                schema["properties"][name] = {**field, "description": _FIELDS[name]}
            if name in _TIMES:
                schema["properties"][name]["anyOf"] = [{"type": "string", "format": "date-time"}, {"type": "null"}]
    answer = schemas["Answer"]["properties"]
    answer["verdict"]["enum"] = ["fresh", "stale", "missing"]
    answer["source"]["enum"] = ["stream", "fresh", "batch", "default"]
    schemas["Output"]["properties"]["verdict"]["enum"] = ["fresh", "stale", "expired", "missing"]
    schemas["Problem"] = {
        "type": "object",
        "description": "RFC 9457; `detail` is one sentence that says what to do.",
        "properties": {
            "type": {"type": "string", "examples": ["urn:almanac:problem:refused"]},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "trace": {"type": "string", "description": "Trace id of the request's traceparent, also in the log."},
            "routes": {
                "type": "array",
                "items": {"type": "string"},
                "description": "Where nothing answers at a path: the methods and paths that do.",
            },
        },
        "required": ["type", "title", "status", "detail"],
    }
    schemas["Pipeline"] = {
        "type": "object",
        "description": "What a caller may know of a declaration; durations in seconds.",
        "properties": {**_PIPELINE, **_STATE},
        "required": list(_PIPELINE),
    }
    schemas["Duration"] = _DURATION
    return dict(sorted(schemas.items()))


def _problems() -> dict[str, Any]:
    content = {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    retry = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds to wait before asking again."}}
    return {
        "BadRequest": {"description": "The request cannot be understood; the detail says why.", "content": content},
        "NotFound": {
            "description": "No such pipeline, entity or point on the grid; or something is wanted of lists, and the "
            "pipeline answers numbers. At a path that is not in this document: a problem with `routes`.",
            "content": content,
        },
        "WrongMethod": {
            "description": "The path lacks this method; Allow names those that it has. HEAD is answered as GET.",
            "content": content,
            "headers": _ALLOW,
        },
        "TooLong": {"description": "Path or query is too long: shorten it, or ask by POST.", "content": content},
        "TooLarge": {"description": f"The body is larger than {BODY_BYTES_MAX:,} bytes.", "content": content},
        "NotJson": {"description": "The body is said to be something else than JSON.", "content": content},
        "Refused": {
            "description": "Nothing that may answer: too old, not published, or no place answers.",
            "content": content,
            "headers": retry,
        },
    }


def _paths() -> dict[str, Any]:
    name = _parameter("name", "path", {"type": "string", "examples": ["bikes"]}, "A declared pipeline.")
    entity = _parameter("entity", "path", {"type": "string", "minLength": 1, "examples": ["17"]}, _FIELDS["entity"])
    stale = _parameter("max_stale", "query", {"$ref": "#/components/schemas/Duration"}, _DURATION_TEXT, required=False)
    lat = _parameter("lat", "query", {"type": "number", "minimum": -90, "maximum": 90}, "Degrees north.")
    lon = _parameter("lon", "query", {"type": "number", "minimum": -360, "maximum": 360}, "Degrees east.")
    answer = {**_ok("The answer.", "Answer"), "headers": _cache_headers()}
    unchanged = {
        "description": "The same prediction, verdict and place as If-None-Match names.",
        "headers": _cache_headers(),
    }
    looked_up = {"200": answer, "304": unchanged, **_errors(400, 404, 503)}
    return {
        "/v1/pipelines": {"get": _get("pipelines", "The declared pipelines", {"200": _listed(), **_errors(400)})},
        "/v1/pipelines/{name}": {
            "get": _get(
                "pipeline",
                "One declaration and its current generation",
                {"200": _ok("The declaration.", "Pipeline"), **_errors(400, 404)},
                name,
            )
        },
        "/v1/{name}/entities/{entity}": {
            "get": _get("entity", "One entity's prediction", looked_up, name, entity, stale, *_choosing())
        },
        "/v1/{name}/point": {"get": _get("point", "The cell nearest to a point", looked_up, name, lat, lon, stale)},
        "/v1/{name}/entities:lookup": {
            "post": {
                "operationId": "entities",
                "summary": "Many entities' predictions, of one epoch",
                "parameters": [name],
                "requestBody": {
                    "required": True,
                    "content": {
                        "application/json": {
                            "schema": _many(),
                            "examples": {
                                "cells": {"value": {"entities": [17, 18]}},
                                "lists": {"value": {"entities": ["17850"], "limit": 5, "filter": ["price<3"]}},
                            },
                        }
                    },
                },
                "responses": {
                    "200": _ok("Answers, and refusals of the rest.", "Many"),
                    **_errors(400, 404, 413, 415, 503),
                },
            }
        },
        "/": {"get": _get("index", "Where to begin", {"200": _index(), **_errors(400)})},
        "/metrics": {"get": _get("metrics", "Metrics of this process", {"200": _metrics(), **_errors(400, 503)})},
        "/livez": {"get": _get("livez", "The process runs", {"200": _ok("It does."), **_errors(400)})},
        "/readyz": {
            "get": _get("readyz", "At least one place answers", {"200": _ok("Which ones answer."), **_errors(400, 503)})
        },
        "/openapi.json": {"get": _get("openapi", "This document", {"200": _ok("OpenAPI 3.1."), **_errors(400)})},
    }


def _many() -> dict[str, Any]:
    """The body of a lookup of many entities."""
    return {
        "type": "object",
        "properties": {
            "entities": {
                "type": "array",
                "minItems": 1,
                "maxItems": ENTITIES_MAX,
                "items": {"anyOf": [{"type": "integer"}, {"type": "string"}]},
            },
            "max_stale": {"anyOf": [{"$ref": "#/components/schemas/Duration"}, {"type": "null"}]},
            "limit": {"type": ["integer", "null"], "minimum": 1, "description": _LIMIT},
            "exclude": {**_TEXTS, "description": _EXCLUDE},
            "filter": {**_TEXTS, "description": _FILTER},
        },
        "required": ["entities"],
        "additionalProperties": False,
    }


def _choosing() -> tuple[dict[str, Any], ...]:
    """What of a list is wanted."""
    return (
        _parameter("limit", "query", {"type": "integer", "minimum": 1}, _LIMIT, required=False),
        _parameter("exclude", "query", {"type": "string", "examples": ["85123A,22423"]}, _EXCLUDE, required=False),
        _parameter("filter", "query", {"type": "string", "examples": ["price<3"]}, _FILTER, required=False),
    )


def _get(operation: str, text: str, responses: dict[str, Any], *parameters: dict[str, Any]) -> dict[str, Any]:
    return {"operationId": operation, "summary": text, "parameters": list(parameters), "responses": responses}


def _parameter(name: str, where: str, schema: dict[str, Any], text: str, *, required: bool = True) -> dict[str, Any]:
    return {"name": name, "in": where, "required": required, "schema": schema, "description": text}


def _ok(text: str, schema: str | None = None) -> dict[str, Any]:
    found = {"$ref": f"#/components/schemas/{schema}"} if schema else {"type": "object"}
    return {"description": text, "content": {"application/json": {"schema": found}}}


def _listed() -> dict[str, Any]:
    found = _ok("All of them.")
    pipelines = {"type": "array", "items": {"$ref": "#/components/schemas/Pipeline"}}
    found["content"]["application/json"]["schema"] = _object(pipelines=pipelines)
    return found


def _index() -> dict[str, Any]:
    found = _ok("Pipelines with example look-ups; a page for a browser.")
    found["content"]["text/html"] = {"schema": {"type": "string"}}
    return found


def _metrics() -> dict[str, Any]:
    text = {"schema": {"type": "string"}}
    kinds = ("text/plain", "application/openmetrics-text")
    return {"description": "In the format that Prometheus asks for.", "content": dict.fromkeys(kinds, text)}


def _errors(*statuses: int) -> dict[str, Any]:
    names = {400: "BadRequest", 404: "NotFound", 413: "TooLarge", 415: "NotJson", 503: "Refused"}
    names |= {405: "WrongMethod", 414: "TooLong"}
    every = sorted({*statuses, 405, 414})
    return {str(status): {"$ref": f"#/components/responses/{names[status]}"} for status in every}


def _cache_headers() -> dict[str, Any]:
    return {
        "Age": {
            "schema": {"type": "integer"},
            "description": "Seconds in caches since the answer was made or checked.",
        },
        "Almanac-Age": {
            "schema": {"type": "integer"},
            "description": "The prediction's age in seconds, rounded up, when the answer was made or checked; add Age.",
        },
        "ETag": {"schema": {"type": "string"}, "description": "Weak: everything in the answer but its growing age."},
        "Cache-Control": {
            "schema": {"type": "string"},
            "description": "max-age: at most 2 s, never past the moment the answer turns stale; stale-if-error.",
        },
    }


if __name__ == "__main__":
    sys.stdout.buffer.write(document_bytes())
