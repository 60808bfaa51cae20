"""Lists: what may be declared of them, what a list may be, and how the ladder answers with one."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import msgspec
import numpy as np
import pytest

from almanac.errors import BlockError, DeclarationError, FeatureError, PredictionError, UsageError
from almanac.ladder import Answer, Candidate, Candidates, Refusal, Rung, Source, Terms, climb
from almanac.list_blocks import empty_block
from almanac.pipeline import Output, Ranking
from almanac.ranked import RankedList
from almanac.ranking_declared import ANY_ITEM
from almanac.settings import load_settings
from almanac.tallies import tally
from jobs.listing import check_keys
from jobs.training.adding import add_onnx
from serving_cache.layout import decode_overlay, encode_overlay
from tests.generations import NOON, bucket_pipeline, grid_pipeline, list_of, list_pipeline, lists_of, overlay_of

RANKING: dict[str, Any] = {"item": "item_id", "features": "items_v1"}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"length": 0}, "Ranking.length is 0"),
        ({"kept": True}, "Ranking.kept is True"),
        ({"length": 40}, "none of these may be above the one after it"),
        ({"kept": 60}, "none of these may be above the one after it"),
        ({"attributes": ("price", "price")}, "repeats a name"),
        ({"attributes": ("scores",)}, "none of"),
        ({"attributes": "price"}, "give a tuple"),
        ({"leave_out": ("a b",)}, "must match"),
        ({"leave_out": ("basket_items",), "leave_out_for": 12}, "give a duration"),
        ({"leave_out": ("basket_items",), "leave_out_for": timedelta(0)}, "give more than no time"),
        ({"leave_out_for": timedelta(hours=1)}, "name in leave_out"),
        ({"available": 1}, "must match"),
        ({"item": ""}, "Ranking.item"),
    ],
)
def test_a_ranking_that_cannot_be_is_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(DeclarationError, match=match) as caught:
        Ranking(**{**RANKING, **changes})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"outputs": (Output(name="a"), Output(name="b"))}, "wants one output"),
        ({"outputs": (Output(name="a", horizon=timedelta(hours=30)),)}, "wants one output"),
        ({"outputs": (Output(name="items"),)}, "named like a column of the lists"),
        ({"entity": "item_id"}, "which is the entity"),
        ({"features": "items_v1"}, "the entity's FeatureService"),
        ({"ranking": "yes"}, r"give Ranking\(item="),
        ({"default": {"score": 1.0}}, "with a ranking give"),
        ({"default": "popular"}, "with a ranking give"),
        ({"ranking": None, "default": ANY_ITEM}, "give a dictionary of output to value"),
        ({"ranking": None, "outputs": (Output(name="items"), Output(name="scores"))}, "the columns of lists"),
    ],
)
def test_what_contradicts_a_ranking_is_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(DeclarationError, match=match):
        list_pipeline("lists", **changes)


@pytest.mark.parametrize(
    ("items", "scores", "prices"),
    [
        (("a", "a"), (2.0, 1.0), (1.0, 1.0)),
        (("a", "b"), (1.0, 2.0), (1.0, 1.0)),
        (("a", "b"), (1.0, float("nan")), (1.0, 1.0)),
        (("a", "b"), (2.0, 1.0), (1.0, float("inf"))),
        (("a", "b"), (2.0,), (1.0, 1.0)),
        (("a", "b"), (2.0, 1.0), (1.0,)),
    ],
)
def test_what_is_no_list_cannot_be_made_nor_read(items: Any, scores: Any, prices: Any) -> None:
    with pytest.raises(PredictionError):
        RankedList(items, scores, {"price": prices})
    told = msgspec.json.encode({"items": items, "scores": scores, "attributes": {"price": prices}})
    good = encode_overlay(overlay_of("1", NOON, 1, values={"score": RankedList(("x",), (1.0,), {})}))
    with pytest.raises(BlockError, match="cannot be read"):
        decode_overlay(good.replace(b'{"items":["x"],"scores":[1.0],"attributes":{}}', told))


def test_the_ladder_answers_with_lists_and_at_last_with_the_default_that_is_held() -> None:
    pipeline = list_pipeline("lists", default=ANY_ITEM)
    mine, popular = list_of("user-3", 2.0), list_of("user-2", 1.0)
    held = Candidates(generation=4, model="m-v1", default={"score": popular})
    known = replace(held, current=Candidate(values={"score": mine}, source=Source.BATCH, as_of=NOON, generation=4))
    answer = climb(known, Terms.of(pipeline), NOON)
    assert isinstance(answer, Answer)
    assert (answer.outputs[0].value, answer.rung) == (mine, Rung.CURRENT)
    nobody = climb(held, Terms.of(pipeline), NOON)
    assert isinstance(nobody, Answer)
    assert (nobody.outputs[0].value, nobody.rung, nobody.age) == (popular, Rung.DEFAULT, None)
    assert (nobody.candidate.source, nobody.candidate.generation) == (Source.DEFAULT, 4)
    assert isinstance(climb(held, Terms.of(pipeline, max_stale=timedelta(days=1)), NOON), Refusal)
    empty = Candidate(values={"score": RankedList((), (), {})}, source=Source.BATCH, as_of=NOON, generation=4)
    assert climb(replace(held, current=empty), Terms.of(pipeline), NOON).reasons == (  # type: ignore[union-attr]
        "the current generation (4) holds no value of this entity",
    )


def test_a_summary_sees_a_list_once() -> None:
    keys = np.array([b"a", b"b", b"c"])
    block = lists_of(keys, [list_of("user-3", 5.0), RankedList((), (), {"price": ()}), list_of("user-1", 2.0)])
    assert tally(block) == {
        "items": (0.0, 3.0, 4.0, 0),
        "scores": (2.0, 5.0, 7.0, 1),
        "price": (0.25, 0.25, 0.5, 1),
    }


@pytest.mark.parametrize("make", [grid_pipeline, bucket_pipeline, list_pipeline])
def test_a_partition_without_entities_has_a_block(make: Any) -> None:
    pipeline = make()
    whole = pipeline.partitions.key_type is int
    block = empty_block(pipeline.stored_columns, whole_keys=whole)
    assert (block.rows, block.stored_columns) == (0, pipeline.stored_columns)
    assert len(block.encoded) < 200


def test_a_model_of_pairs_is_not_brought_along(tmp_path: Any) -> None:
    with pytest.raises(UsageError, match="make it with `almanac train lists`"):
        add_onnx(
            list_pipeline("lists"),
            load_settings(state_dir=tmp_path),
            tmp_path / "x.onnx",
            inputs=(),
            now=NOON,
            progress=print,
        )


@pytest.mark.parametrize("key", ["", "x" * 257, "é" * 129, "a\0b"])
def test_an_item_that_no_block_can_name_is_refused_before_anything_is_written(key: str) -> None:
    check_keys(["fine", "é" * 128])
    with pytest.raises(FeatureError, match="leave it out of the items' views"):
        check_keys(["fine", key])
