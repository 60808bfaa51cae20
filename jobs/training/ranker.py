"""Train a model that ranks: LambdaRank over candidate items, each list as of just before an entity took something.

1. features up to now;
2. lists to learn from, before the held-out time, their candidate items and which of these were taken (`ranker_data`);
3. fit LightGBM's LambdaRank: a list is a query, an item that was taken is relevant;
4. convert to ONNX, and prove on golden rows that it answers as LightGBM does;
5. measure recall and NDCG on the held-out time, beside what is popular and what was bought before;
6. register the version, and let the declared alias name it; where a challenger is declared, only past its gates.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from almanac.clock import MICROSECOND, at_micros, format_time
from almanac.errors import FeatureError
from almanac.list_quality import Tally, as_lists, baselines, filled_up
from almanac.manifest import Description, ListMetric, Reference, Window
from almanac.pipeline import Pipeline
from almanac.ragged import Ragged, Wholes, offsets_of, picked
from almanac.ranking import HISTORY, HISTORY_COUNTS, PAIR_COLUMNS, Pairs, candidates, matrix, top
from almanac.registry import ModelVersion
from almanac.scoring import Scorer
from almanac.settings import Settings
from features.ranked import Taken, ranking_of, taken_between
from features.store import one_look
from jobs.training.convert import Fitted, Floats, Recipe
from jobs.training.declared import doubles_of, need_told_apart
from jobs.training.fitting import Progress, boost, inputs_of, libraries, make
from jobs.training.promotion import champion, judged, register
from jobs.training.ranker_data import (
    BY_NIGHT,
    EACH_BASKET,
    NIGHTLY,
    Asked,
    each_basket,
    held_out_since,
    nightly,
    sample,
)

LISTS_MIN = 50
"""Lists to learn from, in which something was taken that was a candidate item."""
LISTS_MEASURED_MAX = 20_000
LISTS_AT_ONCE = 2_000
"""Lists that are ranked at once."""
LEAF_SHARE = 2_000
LEAF_ROWS_MIN = 20
GOLDEN_TABLE_ROWS = 20_000


@dataclass(frozen=True, kw_only=True)
class Learned:
    """Pairs to learn from, list by list.

    Args:
        inputs: float32 (pairs, columns).
        relevant: 1 for an item that was taken, int8 (pairs,).
        sizes: pairs of each list.
        names: of the columns.
    """

    inputs: Floats
    relevant: NDArray[np.int8]
    sizes: Wholes
    names: tuple[str, ...]


def train_ranking(pipeline: Pipeline, settings: Settings, *, now: datetime, progress: Progress) -> ModelVersion:
    """Make, prove, measure and register a new version of a model that ranks.

    Raises:
        DeclarationError: the pipeline has no ranking, or a source that is no interactions.
        SourceError: the source cannot be used, or nothing was taken yet.
        FeatureError: features are missing or too large for float32, or too little was taken to learn from.
        ModelError: ONNX Runtime does not agree with LightGBM.
    """
    import pyarrow as pa

    taken = prepare(pipeline, settings, now=now, progress=progress)
    since = held_out_since(pipeline, int(taken.moments[-1]))
    progress(f"making lists to learn from, before {format_time(at_micros(since))}")
    with one_look():
        learned = learn_from(pipeline, settings, taken, since)
    for service in (pipeline.features, ranking_of(pipeline).features):
        doubles = doubles_of(pipeline, settings, learned.names, service)
        need_told_apart(pipeline, doubles, learned.names, learned.inputs)
    recipe = Recipe(inputs=learned.names, differences=())
    progress(f"fitting LambdaRank on {len(learned.inputs):,} pairs of {len(learned.sizes):,} lists")
    fitted = _fit(pipeline, learned)
    progress("converting to ONNX, proving it on golden rows")
    rows = learned.inputs[:GOLDEN_TABLE_ROWS]
    table = pa.table({name: rows[:, index] for index, name in enumerate(learned.names)})
    made = make(pipeline, recipe, [fitted], table)
    progress("measuring lists of the held-out time")
    rival = champion(pipeline, settings, learned.names)
    with one_look():
        found = measure(pipeline, settings, (made.scorer, *rival.scorers), taken, since)
    description = Description(
        features=pipeline.features,
        inputs=inputs_of(made.scorer),
        outputs=pipeline.output_names,
        training=Window(start=at_micros(taken.moments[0]), end=at_micros(since - 1)),
        held_out=Window(start=at_micros(since), end=at_micros(taken.moments[-1])),
        rows=len(learned.inputs),
        seed=pipeline.training.seed,
        parity=made.parity,
        metrics={},
        lists=found[0],
        references={},
        libraries=libraries(),
        data=f"{len(learned.sizes):,} lists, features of {pipeline.features} and {ranking_of(pipeline).features}",
    )
    description = judged(pipeline, description, rival, found[1:])
    return register(pipeline, settings, made, description, now=now, progress=progress)


def prepare(pipeline: Pipeline, settings: Settings, *, now: datetime, progress: Progress) -> Taken:
    """Step 1: features of the training window, and what was taken in it; raises as above."""
    from features.ingest import refresh
    from features.store import apply

    progress("registering the feature definitions")
    apply(settings)  # so that a changed Feast file counts from the next model on
    progress("bringing features up")
    window = pipeline.training.window
    newest = refresh(pipeline, settings, now, window=window).as_of
    progress("reading what was taken")
    taken = taken_between(pipeline, settings, newest - window, newest + MICROSECOND)
    if not len(taken):
        raise FeatureError(
            f"pipeline {pipeline.name}: nothing was taken in the {window} before {format_time(newest)}: "
            "give more interactions, or lengthen Training.window"
        )
    return taken


def measure(
    pipeline: Pipeline,
    settings: Settings,
    scorers: Sequence[Scorer],
    taken: Taken,
    since: int,
    *,
    by_night: bool = False,
) -> list[dict[str, ListMetric]]:
    """Recall and NDCG of each scorer's lists in the held-out time, in both ways of asking, beside the baselines.

    What is scored is what is served: the same candidate items, the same graph. An entity without a history gets what
    is popular, as a lookup answers it.

    Args:
        taken: until the end of the held-out time.
        since: its first midnight, microseconds since 1970.
        by_night: a third way besides: each basket's list as of the midnight before.
    """
    ranking = ranking_of(pipeline)
    held_out = np.flatnonzero(taken.moments >= since)
    whole = Taken(
        keys=taken.keys.take(held_out),
        moments=taken.moments[held_out],
        items=picked(taken.items, held_out)[1],
    )
    chosen = np.arange(len(whole))
    if len(chosen) > LISTS_MEASURED_MAX:
        draw = np.random.default_rng(pipeline.training.seed)
        chosen = np.sort(draw.choice(len(chosen), size=LISTS_MEASURED_MAX, replace=False))
    ways: dict[str, Iterable[Asked]] = {
        NIGHTLY: [nightly(pipeline, settings, whole, since)],
        EACH_BASKET: each_basket(pipeline, settings, whole, chosen),
    }
    if by_night:
        ways[BY_NIGHT] = each_basket(pipeline, settings, whole, chosen, by_night=True)
    found: list[dict[str, ListMetric]] = [{} for _ in scorers]
    for way, parts in ways.items():
        tally = Tally(ranking.length)
        names: tuple[str, ...] = ()
        for asked in parts:
            own, counts = (_of_everybody(asked.entities.lists[name], asked) for name in (HISTORY, HISTORY_COUNTS))
            simple = baselines(own, counts, asked.items, ranking)
            names = tuple(simple)
            made = {str(place): _ranked(pipeline, scorer, asked) for place, scorer in enumerate(scorers)}
            tally.add(asked.truth, {**simple, **made})
        for place, metrics in enumerate(found):
            metrics[way] = tally.metric(str(place), names)
    return found


def _ranked(pipeline: Pipeline, scorer: Scorer, asked: Asked) -> Ragged:
    """The lists that would be answered, of everybody who was asked about."""
    ranking = ranking_of(pipeline)
    parts = []
    for start in range(0, len(asked.entities), LISTS_AT_ONCE):
        some = asked.entities.part(start, min(start + LISTS_AT_ONCE, len(asked.entities)))
        pairs = candidates(some, asked.items, ranking)
        columns = matrix(some, asked.items, pairs, scorer.inputs)
        named = {name: columns[:, index] for index, name in enumerate(scorer.inputs)}
        scores = scorer.score(named)[scorer.outputs[0]]
        parts.append(as_lists(top(scores, pairs, ranking.length)))
    lengths = np.concatenate([np.empty(0, np.int64), *(part.lengths for part in parts)])
    values = np.concatenate([np.empty(0, np.int64), *(part.values for part in parts)])
    made = Ragged(values, offsets_of(lengths))
    return filled_up(_of_everybody(made, asked), asked.items, ranking)


def _of_everybody(lists: Ragged, asked: Asked) -> Ragged:
    """Lists of those with a history among all who were asked about; the others' are empty."""
    lengths = np.zeros(len(asked), np.int64)
    lengths[asked.known] = lists.lengths
    return Ragged(lists.values, offsets_of(lengths))


def learn_from(pipeline: Pipeline, settings: Settings, taken: Taken, since: int) -> Learned:
    """Step 2: pairs of the lists in which a candidate item was taken; the others teach nothing of an order."""
    ranking = ranking_of(pipeline)
    chosen = sample(pipeline, taken, int(taken.moments[0]), since)
    inputs, relevant, sizes = [], [], []
    names: tuple[str, ...] = ()
    for asked in each_basket(pipeline, settings, taken, chosen):
        pairs = candidates(asked.entities, asked.items, ranking)
        names = names or _names(asked, pairs, ranking.available)
        good = _taken(pairs, asked)
        counts = np.diff(pairs.offsets)
        taught = np.bincount(pairs.entity_index, good, len(counts)) > 0
        rows = taught[pairs.entity_index]
        inputs.append(matrix(asked.entities, asked.items, pairs, names)[rows])
        relevant.append(good[rows])
        sizes.append(counts[taught])
    number = sum(len(part) for part in sizes)
    if number < LISTS_MIN:
        raise FeatureError(
            f"pipeline {pipeline.name}: in {number} lists before the held-out time a candidate item was taken, "
            f"{LISTS_MIN} are needed: give more interactions, or shorten Training.holdout"
        )
    return Learned(
        inputs=np.concatenate(inputs), relevant=np.concatenate(relevant), sizes=np.concatenate(sizes), names=names
    )


def _names(asked: Asked, pairs: Pairs, available: str | None) -> tuple[str, ...]:
    """The model's columns: the entity's, the item's, the pair's; not what is the same for every candidate item."""
    items = [name for name in asked.items.columns if name != available]
    return (*asked.entities.columns, *items, *(name for name in PAIR_COLUMNS if name in pairs.columns))


def _taken(pairs: Pairs, asked: Asked) -> NDArray[np.int8]:
    """1 for each pair whose item the entity then took."""
    truth = asked.truth
    owner = np.repeat(np.arange(len(truth)), truth.lengths)
    known = truth.values >= 0
    span = len(asked.items.keys)
    wanted = owner[known] * span + truth.values[known]
    return np.isin(asked.known[pairs.entity_index] * span + pairs.item_index, wanted).astype(np.int8)


def _fit(pipeline: Pipeline, learned: Learned) -> Fitted:
    """Step 3: LambdaRank, deterministic."""
    booster = boost(
        pipeline.training,
        learned.inputs,
        learned.relevant,
        learned.names,
        group=learned.sizes,
        objective="lambdarank",
        min_child_samples=max(LEAF_ROWS_MIN, len(learned.inputs) // LEAF_SHARE),
        feature_fraction=0.7,
        bagging_fraction=0.8,
        lambda_l2=5.0,
    )
    return Fitted(output=pipeline.output_names[0], booster=booster, reference=Reference(weights={}, damping=1.0))
