"""HTTP without a framework: requests, responses, RFC 9457 problems and the router. No sockets here."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

import msgspec

BODY_BYTES_MAX = 1_048_576
ENTITIES_MAX = 1_000
PATH_CHARACTERS_MAX = 2_048
QUERY_CHARACTERS_MAX = 4_096
QUERY_FIELDS_MAX = 16

JSON = "application/json"
PROBLEM_JSON = "application/problem+json"
TITLES = {
    400: "Bad request",
    404: "Not found",
    405: "Method not allowed",
    406: "Not acceptable",
    408: "Request timeout",
    413: "Body too large",
    414: "Address too long",
    415: "Unsupported body",
    500: "Internal error",
    503: "No answer",
}


@dataclass(frozen=True, slots=True)
class Request:
    """What a handler sees: path parameters, query, headers in lower case, and the whole body."""

    method: str
    path: str
    query_string: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    def query(self, *allowed: str) -> dict[str, str]:
        """The query's fields; refuses unknown and repeated ones, for a mistyped `max_stale` must not pass silently.

        Raises:
            Problem: 400 or 414, in one sentence.
        """
        if len(self.query_string) > QUERY_CHARACTERS_MAX:
            detail = f"the query is longer than {QUERY_CHARACTERS_MAX} characters: shorten it, or ask by POST"
            raise Problem(414, "long-address", detail)
        try:
            pairs = parse_qsl(
                self.query_string, keep_blank_values=True, max_num_fields=QUERY_FIELDS_MAX, errors="strict"
            )
        except ValueError:
            raise Problem(400, "bad-query", "the query is not percent-encoded UTF-8: encode it") from None
        found: dict[str, str] = {}
        for name, value in pairs:
            if name not in allowed:
                known = ", ".join(allowed) or "none"
                raise Problem(
                    400, "bad-query", f"no query parameter {name[:40]!r} (known here: {known}): correct its name"
                )
            if name in found:
                raise Problem(400, "bad-query", f"{name} is given more than once: give it once")
            found[name] = value
        return found


@dataclass(frozen=True, slots=True)
class Response:
    """Status, headers and body, ready to send."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class Problem(Exception):
    """An answer in the form of RFC 9457: raised anywhere, sent by the app.

    Args:
        status: the HTTP status.
        kind: a short stable word, the end of `type`.
        detail: one sentence that says what happened, to which thing, and what to do.
        headers: further headers, such as Allow.
        members: extension members.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        *,
        headers: tuple[tuple[str, str], ...] = (),
        members: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = detail
        self.headers = headers
        self.members = dict(members or {})

    def document(self) -> dict[str, Any]:
        """The members of the problem document."""
        return {
            "type": f"urn:almanac:problem:{self.kind}",
            "title": TITLES.get(self.status, "Error"),
            "status": self.status,
            "detail": self.detail,
            **self.members,
        }

    def response(self) -> Response:
        """The problem as a response that no cache keeps."""
        headers = (("content-type", PROBLEM_JSON), ("cache-control", "no-store"), *self.headers)
        return Response(self.status, headers, msgspec.json.encode(self.document()))


def json_response(value: Any, *, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    """A JSON answer."""
    return Response(status, (("content-type", JSON), *headers), msgspec.json.encode(value))


Handler = Callable[..., Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Route:
    """A method, a path such as `/v1/{name}/entities/{entity...}` (dots: slashes too), and who answers."""

    method: str
    path: str
    handler: Handler

    def pattern(self) -> re.Pattern[str]:
        """The path as a regular expression with one group per parameter."""
        text = re.escape(self.path).replace(r"\{", "{").replace(r"\}", "}").replace(r"\.\.\.", "...")
        text = re.sub(r"\{(\w+)\.\.\.\}", r"(?P<\1>.+)", text)
        return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", text), re.DOTALL)


class Router:
    """Finds the handler of a request: the first route whose path fits."""

    def __init__(self, routes: list[Route]) -> None:
        self._routes = [(route, route.pattern()) for route in routes]

    def find(self, method: str, path: str) -> tuple[Handler, dict[str, str]]:
        """The handler and the path's parameters. HEAD is answered as GET, OPTIONS with the methods there are.

        Raises:
            Problem: 404 for a path that nothing answers, 405 with Allow for another method, 414 for a long path.
        """
        if len(path) > PATH_CHARACTERS_MAX:
            raise Problem(414, "long-address", f"the path is longer than {PATH_CHARACTERS_MAX} characters: shorten it")
        wanted = "GET" if method == "HEAD" else method
        allowed: list[str] = []
        for route, pattern in self._routes:
            match = pattern.fullmatch(path)
            if match is None:
                continue
            if route.method == wanted:
                return route.handler, match.groupdict()
            allowed += ["GET", "HEAD"] if route.method == "GET" else [route.method]
        if not allowed and not (method == "OPTIONS" and path == "*"):
            known = [f"{route.method} {route.path.replace('...', '')}" for route, _ in self._routes]
            detail = (
                "nothing answers at this path: try /v1/{name}/entities/{entity}, or see `routes` here or /openapi.json"
            )
            raise Problem(404, "unknown-path", detail, members={"routes": known})
        allow = ", ".join(dict.fromkeys([*(allowed or ["GET", "HEAD", "POST"]), "OPTIONS"]))
        if method == "OPTIONS":
            return _options, {"allow": allow}
        raise Problem(405, "method", f"{method[:20]} is not answered here: use {allow}", headers=(("allow", allow),))


async def _options(request: Request, allow: str) -> Response:
    """Which methods a path has; nothing more, for other origins are given nothing."""
    return Response(204, (("allow", allow),), b"")
