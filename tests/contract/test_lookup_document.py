"""The OpenAPI document keeps its own rules: examples fit their schemas, lists say of what, all forms stand there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from almanac.errors import UsageError
from serving_cache.lookup.openapi import document
from serving_cache.lookup.parsing import DURATION_FORMS, max_stale
from serving_cache.lookup.summaries import summary
from tests.generations import bucket_pipeline, grid_pipeline, list_pipeline, numbered_pipeline

DOCUMENT = document()


def parts(node: Any, at: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object within the document, and where it stands."""
    if isinstance(node, dict):
        yield at, node
    for name, inner in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from parts(inner, f"{at}/{name}")


def resolved(schema: Any) -> Any:
    """The schema as a validator of JSON Schema takes it: references lead into the document."""
    return {"components": DOCUMENT["components"], "allOf": [schema]}


def examples() -> Iterator[tuple[str, dict[str, Any], Any]]:
    """Each example of the document, with where it stands and its schema."""
    for at, part in parts(DOCUMENT):
        if isinstance(part.get("examples"), list):
            yield from ((at, part, example) for example in part["examples"])
        elif isinstance(part.get("examples"), dict):
            yield from ((at, part["schema"], example["value"]) for example in part["examples"].values())


EXAMPLES = list(examples())


@pytest.mark.parametrize(("at", "schema", "example"), EXAMPLES, ids=[f"{at[-40:]} {e}" for at, _, e in EXAMPLES])
def test_an_example_fits_its_own_schema(at: str, schema: dict[str, Any], example: Any) -> None:
    jsonschema.validate(example, resolved(schema), jsonschema.Draft202012Validator)


def test_every_list_says_of_what() -> None:
    lacking = [at for at, part in parts(DOCUMENT) if part.get("type") in ("array", ["array"]) and "items" not in part]
    assert not lacking


def test_every_operation_and_schema_is_whole() -> None:
    names = [operation["operationId"] for methods in DOCUMENT["paths"].values() for operation in methods.values()]
    assert len(set(names)) == len(names)
    for path, methods in DOCUMENT["paths"].items():
        assert "options" in methods, path
        for method, operation in methods.items():
            assert {"405", "414"} <= set(operation["responses"]), (method, path)
            declared = {one["name"] for one in operation["parameters"] if one["in"] == "path"}
            assert declared == set(re.findall(r"{(\w+)}", path)), (method, path)
    for at, part in parts(DOCUMENT):
        if isinstance(reference := part.get("$ref"), str):
            found: Any = DOCUMENT
            for step in reference.removeprefix("#/").split("/"):
                found = found[step]
            assert found, at


@pytest.mark.parametrize(
    "pipeline",
    [
        grid_pipeline("a"), bucket_pipeline("c"), list_pipeline("d"),
        numbered_pipeline("e"), bucket_pipeline("f", default={"t2m_1h": 1.0, "t2m_6h": 2.0}),
    ],
    ids=lambda pipeline: pipeline.name,
)  # fmt: skip
def test_what_is_said_of_a_declaration_is_in_the_document(pipeline: Any) -> None:
    said, schema = (
        msgspec.json.decode(msgspec.json.encode(summary(pipeline))),
        DOCUMENT["components"]["schemas"]["Pipeline"],
    )
    assert set(said) == set(schema["required"])
    assert set(schema["properties"]) - set(said) == {"current", "place", "reason"}
    jsonschema.validate(said, resolved(schema), jsonschema.Draft202012Validator)


def documented(value: Any) -> bool:
    schema = resolved({"$ref": "#/components/schemas/Duration"})
    return bool(jsonschema.Draft202012Validator(schema).is_valid(value))


@pytest.mark.parametrize(
    "form",
    ["1d", "P1D", "1e5", "1E5", "PT90M", "pt90m", "p1dt1h", "90", "0", "0.5h", "1.5e-3", "2min", 5400, 0.25, 1e5],
)
def test_what_the_service_takes_is_documented(form: Any) -> None:
    assert isinstance(max_stale(form), timedelta)
    assert documented(form)


@pytest.mark.parametrize(
    "form", ["", "soon", "P", "PT", "P1", "1w", "1 d", "-1", "+1", "1d2h", "P1H", "PT1D", "1e", "1e5s", "٣", -1, True]
)
def test_what_is_not_documented_is_refused(form: Any) -> None:
    with pytest.raises(UsageError, match="max_stale is"):
        max_stale(form)
    assert not documented(form) or form is True  # JSON Schema's numbers have no true


@given(st.one_of(*(st.from_regex(f"^{form}$", fullmatch=True) for form in DURATION_FORMS), st.text(max_size=12)))
def test_forms_are_documented_exactly(text: str) -> None:
    """A text is a duration where the document says so, and where the service takes it; how long ones may be aside."""
    try:
        max_stale(text)
        taken = True
    except UsageError as error:
        taken = "days" in str(error)
    assert documented(text) is taken or text != text.strip() or len(text) > 40
