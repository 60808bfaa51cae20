"""The one place that calls Great Expectations, whose import takes seconds and logs hundreds of lines if it may."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa


def quieten() -> None:
    """Keep it from logging a line for each of its functions at its import; to be called before that."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    for name in ("great_expectations", "posthog"):
        logging.getLogger(name).setLevel(logging.ERROR)


def expectation(name: str, arguments: Mapping[str, Any]) -> Any:
    """An expectation by its snake_case name; Great Expectations raises what it likes if there is none such."""
    quieten()
    from great_expectations.expectations.registry import get_expectation_impl

    return get_expectation_impl(name)(**arguments)


def validate(table: pa.Table, expectations: Sequence[Any], result_format: Mapping[str, Any]) -> list[Any]:
    """Check a table against some expectations, in one validation; returns a result for each."""
    quieten()
    import great_expectations as gx

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    asset = context.data_sources.add_pandas("almanac").add_dataframe_asset("rows")
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": table.to_pandas()})
    suite = gx.ExpectationSuite(name="almanac", expectations=list(expectations))
    return list(batch.validate(suite, result_format=dict(result_format)).results)
