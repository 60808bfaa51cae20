"""What callers write into a lookup's address: ages, and wishes of lists."""

from __future__ import annotations

from urllib.parse import parse_qsl

from serving_cache.lookup.choosing import choice
from serving_cache.lookup.parsing import max_stale
from tests.compatibility.tables import Case, Converted, Table, Taken, cell
from tests.generations import list_pipeline

LISTS = list_pipeline("books")


def case(query: str) -> Case:
    """A query of `/v1/books/entities/…`."""

    def attempt() -> Taken | Converted:
        asked = dict(parse_qsl(query, keep_blank_values=True, errors="strict"))
        age = max_stale(asked.get("max_stale"))
        wished = choice(LISTS, asked.get("limit"), asked.get("exclude"), asked.get("filter"))
        if age is not None:
            return Converted(f"at most {age.total_seconds():g} s old")
        return Taken() if wished is None else Taken(cell(str(asked.get("limit") or "a list as wished")))

    return Case(cell(query), attempt)


TABLE = Table(
    given="query",
    cases=tuple(
        case(query)
        for query in (
            "max_stale=5400", "max_stale=90m", "max_stale=1d", "max_stale=P1D", "max_stale=pt90m", "max_stale=1e5",
            "max_stale=0.5h", "max_stale=0", "max_stale=", "max_stale=soon", "max_stale=-1", "max_stale=1w",
            "max_stale=NaN", "max_stale=4000d", "limit=2", "limit=0", "limit=4", "limit=2.0", "exclude=a,b",
            'exclude="a,b",c', "exclude=a,,b", "filter=price%3C3", "filter=price<3,price>=1", "filter=colour=red",
            "filter=price", "filter=price%3Cnan",
        )
    ),
)  # fmt: skip
