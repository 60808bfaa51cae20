"""Who answers at which path. Handlers take a request and give a response, or raise a problem."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from almanac.entity_keys import WrittenFloat, entity_key, shown
from almanac.errors import UnknownEntity, UnknownPipeline, UsageError
from almanac.ladder import Answer, Refusal
from almanac.partitioning import EntityKey, Grid
from almanac.pipeline import Pipeline
from serving_cache.lookup import pages, parsing
from serving_cache.lookup.answers import (
    RETRY_AFTER_SECONDS,
    AnswerJson,
    ManyJson,
    RefusalJson,
    answer_json,
    cache_headers,
    refusal_json,
)
from serving_cache.lookup.choosing import Choice, NoLists, choice
from serving_cache.lookup.places import BUSY, OK
from serving_cache.lookup.service import ENTITIES_AT_A_TIME, NothingAnswers, Outcome, Service
from serving_cache.lookup.summaries import summary
from serving_cache.lookup.web import (
    ENTITIES_MAX,
    JSON,
    Handler,
    Problem,
    Request,
    Response,
    Route,
    json_response,
)

if TYPE_CHECKING:
    from serving_cache.lookup.counting import Counts

INT_MAX = 2**63  # what JSON numbers are read as by most callers
CHOOSING = ("limit", "exclude", "filter")
"""What of a list is wanted, in a query."""
REST, REST_MANY = "rest", "rest_many"
"""Interfaces, in metrics: one entity or a point, and many."""
UNDECLARED = ""
"""The pipeline, in metrics, of a request that names one that is not declared."""

_NO_STORE = (("cache-control", "no-store"),)
_RETRY = (("retry-after", str(RETRY_AFTER_SECONDS)),)


class Many(msgspec.Struct, forbid_unknown_fields=True):
    """Body of a lookup of many entities."""

    entities: list[Any]
    max_stale: Any = None
    limit: Any = None
    exclude: Any = None
    filter: Any = None


_body = msgspec.json.Decoder(Many, float_hook=WrittenFloat)


class Routes:
    """The handlers, over the declared pipelines and a service.

    Args:
        pipelines: by name.
        service: gives the service; waits for it while the process starts.
        document: the OpenAPI document's bytes.
    """

    def __init__(self, pipelines: Mapping[str, Pipeline], service: Any, document: bytes) -> None:
        self._pipelines = pipelines
        self._service = service
        self._document = document
        self.counts: Counts | None = None  # once the service is open

    def table(self) -> list[Route]:
        """All routes, most special first."""
        return [
            Route("GET", "/", self.index),
            Route("GET", "/favicon.ico", self.no_icon),
            Route("GET", "/livez", self.livez),
            Route("GET", "/readyz", self.readyz),
            Route("GET", "/metrics", self.metrics),
            Route("GET", "/openapi.json", self.openapi),
            Route("GET", "/v1/pipelines", self.list_pipelines),
            Route("GET", "/v1/pipelines/{name}", self.describe),
            Route("GET", "/v1/{name}/point", self._counted(REST, self.point)),
            Route("POST", "/v1/{name}/entities:lookup", self._counted(REST_MANY, self.many)),
            Route("GET", "/v1/{name}/entities/{entity...}", self._counted(REST, self.one)),
        ]

    def _counted(self, interface: str, handler: Handler) -> Handler:
        """The same handler, its time and its problems counted under a declared pipeline's name."""

        async def answer(request: Request, name: str, **parameters: str) -> Response:
            began = time.perf_counter()
            pipeline = name if name in self._pipelines else UNDECLARED
            try:
                return await handler(request, name=name, **parameters)
            except Problem as problem:
                if self.counts is not None:
                    self.counts.problem(pipeline, interface, problem.status)
                raise
            except Exception:  # the service's own mistake, told as such further up
                if self.counts is not None:
                    self.counts.problem(pipeline, interface, 500)
                raise
            finally:
                if self.counts is not None:
                    self.counts.took(pipeline, interface, time.perf_counter() - began)

        return answer

    async def index(self, request: Request) -> Response:
        """Where to begin: a page for a browser, JSON for a program."""
        request.query()
        headers = (("vary", "accept"), *_NO_STORE)
        if pages.prefers_html(request.headers.get("accept", "")):
            policy = ("content-security-policy", pages.POLICY)
            return Response(
                200, (("content-type", pages.HTML), policy, *headers), pages.index_html(self._pipelines.values())
            )
        return json_response(pages.index_json(self._pipelines.values()), headers=headers)

    async def no_icon(self, request: Request) -> Response:
        """Browsers ask; there is none, and they may remember that for a day."""
        return Response(204, (("cache-control", "max-age=86400"),), b"")

    async def metrics(self, request: Request) -> Response:
        """This process's metrics, in the format that Prometheus asks for."""
        request.query()
        service: Service = await self._service()
        if service.counts is None:
            raise Problem(
                503, "no-metrics", "this process counts nothing: start it as `python -m serving_cache.lookup`"
            )
        ready = _ready(await service.health())
        body, content_type = service.counts.exposition(request.headers.get("accept", ""), ready)
        return Response(200, (("content-type", content_type), *_NO_STORE), body)

    async def livez(self, request: Request) -> Response:
        """The process runs."""
        request.query()
        return json_response({"alive": True}, headers=_NO_STORE)

    async def readyz(self, request: Request) -> Response:
        """At least one place answers; says which."""
        request.query()
        service: Service = await self._service()
        places = await service.health()
        if not _ready(places):
            detail = "no place answers: look at `almanac status`"
            raise Problem(503, "not-ready", detail, headers=_RETRY, members={"ready": False, "places": places})
        return json_response({"ready": True, "places": places}, headers=_NO_STORE)

    async def openapi(self, request: Request) -> Response:
        """The document of this service."""
        request.query()
        return Response(200, (("content-type", "application/json"),), self._document)

    async def list_pipelines(self, request: Request) -> Response:
        """The declared pipelines."""
        request.query()
        return json_response({"pipelines": [summary(found) for found in self._pipelines.values()]}, headers=_NO_STORE)

    async def describe(self, request: Request, name: str) -> Response:
        """One declaration, and its current generation as far as a place can tell."""
        request.query()
        pipeline = self._pipeline(name)
        service: Service = await self._service()
        try:
            current, place = await service.current(pipeline)
        except NothingAnswers as error:
            return json_response(
                {**summary(pipeline), "current": None, "place": None, "reason": str(error)}, headers=_NO_STORE
            )
        reason = None if current else "no generation is published yet"
        return json_response(
            {**summary(pipeline), "current": current, "place": place, "reason": reason}, headers=_NO_STORE
        )

    async def one(self, request: Request, name: str, entity: str) -> Response:
        """One entity."""
        query = request.query("max_stale", *CHOOSING)
        pipeline = self._pipeline(name)
        wanted = _choice(pipeline, *(query.get(name) for name in CHOOSING))
        max_stale = _max_stale(query.get("max_stale"))
        return await self._one(request, pipeline, _entity(pipeline, entity), max_stale, wanted)

    async def point(self, request: Request, name: str) -> Response:
        """The cell nearest to a point."""
        query = request.query("lat", "lon", "max_stale")
        pipeline = self._pipeline(name)
        if not isinstance(pipeline.partitions, Grid):
            detail = f"pipeline {name} has no grid: look up a {pipeline.entity} instead of a point"
            raise Problem(404, "no-grid", detail)
        try:
            cell = parsing.position(pipeline.partitions, query.get("lat"), query.get("lon"))
        except UnknownEntity as error:
            raise Problem(404, "outside-grid", str(error)) from None
        except UsageError as error:
            raise Problem(400, "bad-point", str(error)) from None
        return await self._one(request, pipeline, cell, _max_stale(query.get("max_stale")))

    async def many(self, request: Request, name: str) -> Response:
        """Many entities, of one epoch; those that cannot be answered stand beside those that are.

        An entity that is asked for at several places is looked up once and answered at each, in the order asked.
        """
        request.query()
        pipeline = self._pipeline(name)
        _need_json(request)
        body = _many(request.body)
        max_stale = _max_stale(body.max_stale)
        wanted_of_lists = _choice(pipeline, body.limit, body.exclude, body.filter)
        asked = [_place(pipeline, value) for value in body.entities]
        wanted = list(dict.fromkeys(place for place in asked if not isinstance(place, RefusalJson)))
        settled: dict[EntityKey, AnswerJson | RefusalJson] = {}
        epoch = 0
        if wanted:
            outcome = await self._lookup(pipeline, wanted, max_stale)
            epoch = outcome.reading.epoch
            self._decided(pipeline, REST_MANY, outcome, wanted)
            for count, entity in enumerate(wanted, start=1):
                if count % ENTITIES_AT_A_TIME == 0:
                    await asyncio.sleep(0)
                decision = outcome.settled(entity)
                if isinstance(decision, Answer):
                    settled[entity] = answer_json(pipeline, entity, decision, outcome, wanted_of_lists)
                else:
                    settled[entity] = refusal_json(pipeline, entity, decision, outcome)
        came = [place if isinstance(place, RefusalJson) else settled[place] for place in asked]
        answers = [one for one in came if isinstance(one, AnswerJson)]
        refusals = [one for one in came if isinstance(one, RefusalJson)]
        if not answers:
            status = 503 if any(refusal.status == 503 for refusal in refusals) else 404
            raise Problem(
                status,
                "refused" if status == 503 else "unknown-entity",
                f"none of the {len(refusals)} entities can be answered; the first: {refusals[0].detail}",
                headers=_RETRY if status == 503 else (),
                members={"pipeline": pipeline.name, "refusals": refusals},
            )
        found = ManyJson(pipeline=pipeline.name, epoch=epoch, answers=answers, refusals=refusals)
        return json_response(found, headers=_NO_STORE)

    async def _one(
        self,
        request: Request,
        pipeline: Pipeline,
        entity: EntityKey,
        max_stale: timedelta | None,
        choice: Choice | None = None,
    ) -> Response:
        outcome = await self._lookup(pipeline, [entity], max_stale)
        self._decided(pipeline, REST, outcome, [entity])
        decision = outcome.settled(entity)
        if isinstance(decision, Refusal):
            refusal = refusal_json(pipeline, entity, decision, outcome)
            raise Problem(
                refusal.status,
                "refused" if refusal.status == 503 else "unknown-entity",
                refusal.detail,
                headers=_RETRY if refusal.status == 503 else (),
                members={"pipeline": pipeline.name, "entity": entity},
            )
        body = answer_json(pipeline, entity, decision, outcome, choice)
        headers = cache_headers(decision, body, max_stale)
        if _matches(request.headers.get("if-none-match", ""), dict(headers)["etag"]):
            return Response(304, headers, b"")
        return json_response(body, headers=headers)

    async def _lookup(self, pipeline: Pipeline, entities: list[EntityKey], max_stale: timedelta | None) -> Outcome:
        service: Service = await self._service()
        try:
            return await service.lookup(pipeline, entities, max_stale)
        except NothingAnswers as error:
            detail = f"{pipeline.name} cannot be looked up now: {error}: retry, or look at `almanac status`"
            raise Problem(503, "no-place", detail, headers=_RETRY, members={"pipeline": pipeline.name}) from None

    def _decided(self, pipeline: Pipeline, interface: str, outcome: Outcome, entities: list[EntityKey]) -> None:
        if self.counts is not None:
            self.counts.decided(pipeline.name, interface, [outcome.settled(entity) for entity in entities])

    def _pipeline(self, name: str) -> Pipeline:
        found = self._pipelines.get(name)
        if found is None:
            known = ", ".join(self._pipelines) or "none"
            error = UnknownPipeline(f"no pipeline {shown(name)} is declared (declared: {known}): correct the name")
            raise Problem(404, "unknown-pipeline", str(error))
        return found


def _ready(places: Mapping[str, str]) -> bool:
    """Whether a place answers; one that this process has no hand free for counts, or all busy replicas would be taken
    out of service together."""
    return any(state == OK or state.startswith(BUSY) for state in places.values())


def _max_stale(value: object) -> timedelta | None:
    try:
        return parsing.max_stale(value)
    except UsageError as error:
        raise Problem(400, "bad-max-stale", str(error)) from None


def _choice(pipeline: Pipeline, limit: object, exclude: object, conditions: object) -> Choice | None:
    try:
        return choice(pipeline, limit, exclude, conditions)
    except NoLists as error:
        raise Problem(404, "no-lists", str(error), members={"pipeline": pipeline.name}) from None
    except UsageError as error:
        raise Problem(400, "bad-choice", str(error), members={"pipeline": pipeline.name}) from None


def _entity(pipeline: Pipeline, value: object) -> EntityKey:
    try:
        return entity_key(pipeline.entity, pipeline.partitions, value)
    except UnknownEntity as error:
        raise Problem(404, "unknown-entity", str(error), members={"pipeline": pipeline.name}) from None


def _need_json(request: Request) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind and kind != JSON and not kind.endswith("+json"):
        detail = f"the body is said to be {shown(kind)}: send JSON, with Content-Type: application/json"
        raise Problem(415, "content-type", detail, headers=(("accept-post", JSON),))


def _many(body: bytes) -> Many:
    try:
        found = _body.decode(body)
    except msgspec.ValidationError as error:
        detail = f'the body is not {{"entities": [...], "max_stale": ...}} ({error}): correct it'
        raise Problem(400, "bad-body", detail) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Problem(400, "bad-body", 'the body is not JSON: send {"entities": [...]}') from None
    if not 1 <= len(found.entities) <= ENTITIES_MAX:
        detail = f"{len(found.entities):,} entities are asked for: give 1 to {ENTITIES_MAX:,} in one request"
        raise Problem(400, "entities", detail)
    for value in found.entities:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            detail = f"entities holds {shown(value)}: give keys only, numbers or strings"
            raise Problem(400, "entities", detail)
    return found


def _place(pipeline: Pipeline, value: Any) -> EntityKey | RefusalJson:
    """The entity that one place of a body names, or the refusal of one that the pipeline cannot have."""
    try:
        return entity_key(pipeline.entity, pipeline.partitions, value)
    except UnknownEntity as error:
        plain = isinstance(value, str) or (isinstance(value, int) and abs(value) < INT_MAX)
        return RefusalJson(entity=value if plain else shown(value), status=404, detail=str(error))


def _matches(header: str, tag: str) -> bool:
    """Whether If-None-Match names the tag, by weak comparison."""
    named = [part.strip().removeprefix("W/") for part in header.split(",")]
    return tag.removeprefix("W/") in named or header.strip() == "*"
