"""Register a model that was trained elsewhere: an ONNX file, or LightGBM's own text, one per output.

Nothing in such a file is trusted: it is read with limits, checked to hold no
code and to need no other file, its inputs must be features of the pipeline's
FeatureService, its outputs the declared ones, and it must answer finite numbers
on the newest rows that there are. Then it is registered like a trained one.

What is accepted of ONNX, and made into this project's own form:

- one matrix (rows, columns) of float32, float64, int32 or int64, whose columns are named by `--inputs`, by
  the graph's metadata `almanac.inputs`, or else by nobody, which is refused;
- or one such input (rows, 1) per column, named like the feature;
- whole numbers are asked for of features alone that are declared so;
- float32 or float64 outputs (rows,) or (rows, 1), named like the declared ones; a single
  output may have any name. Answers are float32 in the end, the nearest one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from almanac.clock import format_time
from almanac.errors import FeatureError, ModelError, UsageError
from almanac.manifest import Description, Reference
from almanac.model_graph import check_graph
from almanac.model_trial import need_harmless
from almanac.pipeline import Pipeline
from almanac.registry import FILE_BYTES_MAX, GOLDEN_FILE, MODEL_FILE, ModelVersion, Registry
from almanac.scoring import COLUMNS_KEY, DTYPES_KEY, INPUT_NAME, Scorer
from almanac.settings import Settings
from features.store import service_columns
from jobs.plan import check_columns
from jobs.training.convert import Fitted, Link, Recipe
from jobs.training.declared import as_read, doubles_of, wholes_of
from jobs.training.evaluate import EXPECTED, GOLDEN_ROWS
from jobs.training.fitting import Made, Progress, inputs_of, libraries, make, proved
from jobs.training.row_by_row import answers_of
from jobs.training.tree_rewriting import rewritten
from jobs.training.tree_text import read_text
from jobs.training.trees import trees_of

if TYPE_CHECKING:
    import lightgbm
    import onnx
    import pyarrow as pa

LINKS: dict[str, Link] = {
    "binary": "sigmoid",
    "cross_entropy": "sigmoid",
    "poisson": "exp",
    "gamma": "exp",
    "tweedie": "exp",
    **dict.fromkeys(("regression", "regression_l1", "huber", "fair", "quantile", "mape"), "identity"),
    **dict.fromkeys(("lambdarank", "rank_xendcg"), "identity"),
}
"""LightGBM's objectives whose answer is one number, and what stands between the trees' sum and it."""
PREFIX = "given/"
ANSWERS = (1, 11)
"""ONNX's float32 and float64, as numbers of `TensorProto`."""
WHOLE_TENSORS = (6, 7)
"""ONNX's int32 and int64."""


def add_onnx(
    pipeline: Pipeline, settings: Settings, file: Path, *, inputs: Sequence[str], now: datetime, progress: Progress
) -> ModelVersion:
    """Register an ONNX file as a new version of the pipeline's model; no alias is moved.

    Args:
        inputs: names of the matrix's columns, in order; empty if the file names them.

    Raises:
        UsageError: the file cannot be read.
        ModelError: it is not a model that may be used, or does not fit the pipeline; says why.
        FeatureError: the pipeline's features cannot be read.
    """
    _need_numbers(pipeline)
    given = _read(file)
    check_graph(file.name, given)
    columns = service_columns(pipeline, settings)
    kinds = Kinds(doubles_of(pipeline, settings, columns), wholes_of(pipeline, settings, columns))
    data = own_form(file.name, given, pipeline, inputs, kinds)
    progress("trying the model in a process of its own")
    need_harmless(file.name, data)
    scorer = Scorer.open(data, file.name, entity=pipeline.entity)
    rows = newest_rows(pipeline, settings, scorer.inputs, now=now, progress=progress)
    answers = answers_of(file.name, scorer, rows)  # refuses what is not finite
    for output, values in answers.items():
        rows = rows.append_column(EXPECTED + output, _doubles(values))
    files = {MODEL_FILE: data, GOLDEN_FILE: _parquet(rows)}
    return _register(pipeline, settings, proved(pipeline, files), f"brought along: {file.name}", now=now)


def add_lightgbm(
    pipeline: Pipeline, settings: Settings, texts: Mapping[str, Path], *, now: datetime, progress: Progress
) -> ModelVersion:
    """Register LightGBM's text files, one per output, as a new version; no alias is moved.

    Raises:
        UsageError: a file cannot be read, or outputs have no file or two.
        ModelError: a file is no LightGBM model that answers one number, or does not fit the pipeline; says why.
        FeatureError: the pipeline's features cannot be read.
    """
    _need_numbers(pipeline)
    if set(texts) != set(pipeline.output_names):
        raise UsageError(
            f"LightGBM files are given for {', '.join(sorted(texts)) or 'nothing'}, pipeline {pipeline.name} has the "
            f"outputs {', '.join(pipeline.output_names)}: give each one, as --lightgbm <output>=<file>"
        )
    boosters = {output: _booster(texts[output]) for output in pipeline.output_names}
    names = {tuple(booster.feature_name()) for booster in boosters.values()}
    if len(names) != 1:
        raise ModelError(
            "the LightGBM files have different inputs: train all outputs on the same columns, in one order"
        )
    inputs = names.pop()
    files_named = ", ".join(path.name for path in texts.values())
    check_columns(pipeline, service_columns(pipeline, settings), inputs, files_named)
    recipe = Recipe(inputs=inputs, differences=(), doubles=doubles_of(pipeline, settings, inputs))
    fitted = [_fitted(output, booster, texts[output]) for output, booster in boosters.items()]
    rows = newest_rows(pipeline, settings, inputs, now=now, progress=progress)
    made = make(pipeline, recipe, fitted, rows)
    return _register(pipeline, settings, made, f"brought along: {files_named}", now=now)


def _need_numbers(pipeline: Pipeline) -> None:
    if pipeline.ranking is not None:
        raise UsageError(
            f"pipeline {pipeline.name} ranks lists, and a model of pairs cannot be proved on rows of its entities: "
            f"make it with `almanac train {pipeline.name}`"
        )


def _register(pipeline: Pipeline, settings: Settings, made: Made, told: str, *, now: datetime) -> ModelVersion:
    scorer = made.scorer
    if scorer.outputs != pipeline.output_names:
        raise ModelError(
            f"the model answers {', '.join(scorer.outputs)}, pipeline {pipeline.name} declares "
            f"{', '.join(pipeline.output_names)}: name and order its outputs like these"
        )
    check_columns(pipeline, service_columns(pipeline, settings), scorer.inputs, told)
    description = Description(
        features=pipeline.features,
        inputs=inputs_of(scorer),
        outputs=pipeline.output_names,
        training=None,
        held_out=None,
        rows=0,
        seed=0,
        parity=made.parity,
        metrics={},
        references={},
        libraries=libraries(),
        data=told,
    )
    return Registry(settings.models_dir).register(pipeline.model_name, made.files, description, now=now)


def newest_rows(
    pipeline: Pipeline, settings: Settings, inputs: Sequence[str], *, now: datetime, progress: Progress
) -> pa.Table:
    """The newest features of up to `GOLDEN_ROWS` entities, every number finite: what a model is tried on.

    Returns:
        The input columns, float32 or float64 as they are declared.

    Raises:
        FeatureError: features are missing, or no entity has all of them.
    """
    import pyarrow as pa

    from features.ingest import refresh
    from features.offline.reading import historical
    from jobs.inputs import some_entities
    from jobs.plan import FEATURE_WINDOW

    progress("reading the newest features")
    moment = refresh(pipeline, settings, now, window=FEATURE_WINDOW).as_of
    keys = some_entities(pipeline, settings, moment, GOLDEN_ROWS)
    kind = pa.int64() if pipeline.partitions.key_type is int else pa.string()
    asked = pa.table(
        {
            pipeline.entity: pa.array(keys, kind),
            "event_timestamp": pa.array([moment] * len(keys), pa.timestamp("us", tz="UTC")),
        }
    )
    table = historical(pipeline, settings, asked)
    check_columns(pipeline, tuple(table.column_names), inputs, "the model")
    table = as_read(table.select(list(inputs)), doubles_of(pipeline, settings, inputs))
    whole = np.isfinite(np.column_stack([table[name].to_numpy() for name in inputs])).all(axis=1)
    if not whole.any():
        raise FeatureError(
            f"none of {len(keys)} entities has all of the model's {len(inputs)} inputs at {format_time(moment)}: mend "
            "the features first, for a model is tried on them before it is registered"
        )
    return table.take(pa.array(np.flatnonzero(whole))).combine_chunks()


@dataclass(frozen=True)
class Kinds:
    """What features are declared as.

    Args:
        doubles: those whose declared type needs float64; a float64 or whole-number input of theirs stays one.
        wholes: those whose declared type holds whole numbers alone.
    """

    doubles: frozenset[str] = frozenset()
    wholes: frozenset[str] = frozenset()


def own_form(
    what: str,
    data: bytes,
    pipeline: Pipeline,
    inputs: Sequence[str],
    kinds: Kinds = Kinds(),
) -> bytes:
    """The same model with one input `features` and outputs (rows,), named as declared, and its columns' names inside.

    Raises:
        ModelError: inputs or outputs are of a form that this module's docstring does not name.
    """
    import onnx
    from onnx import TensorProto, compose, helper

    model = onnx.load_model_from_string(data)
    if not model.graph.input:
        raise ModelError(f"{what} has no input: convert it again")
    columns = _columns_of(what, model, inputs)
    outputs = _outputs_of(what, model, pipeline)
    given = compose.add_prefix(model, PREFIX)
    entries = _entries(given)
    wide = {entry.name for entry in entries if entry.type.tensor_type.elem_type != TensorProto.FLOAT}
    owners = entries if len(entries) > 1 else entries * len(columns)
    for name, owner in zip(columns, owners, strict=True):
        if owner.type.tensor_type.elem_type in WHOLE_TENSORS and name not in kinds.wholes:
            raise ModelError(
                f"{what} takes {name} as whole numbers, and the feature is not declared so: its fractions would be "
                "cut; declare it Int64, or convert the model with a float input"
            )
    dtypes = [
        "float64" if owner.name in wide and name in kinds.doubles else "float32"
        for name, owner in zip(columns, owners, strict=True)
    ]
    kind = TensorProto.DOUBLE if "float64" in dtypes else TensorProto.FLOAT
    nodes: list[Any] = []
    constants: list[Any] = list(given.graph.initializer)
    for index, entry in enumerate(entries):
        source = INPUT_NAME
        if len(entries) > 1:
            source = f"one_column_{index}"
            constants.append(helper.make_tensor(f"column_{index}", TensorProto.INT64, [1], [index]))
            nodes.append(helper.make_node("Gather", [INPUT_NAME, f"column_{index}"], [source], axis=1))
        nodes.append(helper.make_node("Cast", [source], [entry.name], to=entry.type.tensor_type.elem_type))
    nodes += given.graph.node
    constants.append(helper.make_tensor("flat", TensorProto.INT64, [1], [-1]))
    for place, (output, name) in enumerate(outputs.items()):
        nodes.append(helper.make_node("Cast", [PREFIX + name], [f"answer_{place}"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Reshape", [f"answer_{place}", "flat"], [output]))
    graph = helper.make_graph(
        nodes,
        "almanac",
        [helper.make_tensor_value_info(INPUT_NAME, kind, [None, len(columns)])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [None]) for output in outputs],
        constants,
    )
    made = helper.make_model(
        graph, opset_imports=list(model.opset_import), producer_name="almanac", ir_version=model.ir_version
    )
    named = {COLUMNS_KEY: list(columns), **({DTYPES_KEY: dtypes} if "float64" in dtypes else {})}
    helper.set_model_props(made, {key: msgspec.json.encode(words).decode() for key, words in named.items()})
    bytes_made: bytes = made.SerializeToString()
    return bytes_made


def _entries(model: onnx.ModelProto) -> list[Any]:
    """The graph's inputs, without those that are constants."""
    initial = {tensor.name for tensor in model.graph.initializer}
    return [entry for entry in model.graph.input if entry.name not in initial]


def _columns_of(what: str, model: onnx.ModelProto, inputs: Sequence[str]) -> tuple[str, ...]:
    from onnx import TensorProto

    entries = _entries(model)
    kinds = (TensorProto.FLOAT, TensorProto.DOUBLE, *WHOLE_TENSORS)
    for entry in entries:
        if entry.type.tensor_type.elem_type not in kinds or len(entry.type.tensor_type.shape.dim) != 2:
            raise ModelError(
                f"{what}: input {entry.name} is no matrix (rows, columns) of float32, float64, int32 or int64: "
                "convert it with one"
            )
    widths = [entry.type.tensor_type.shape.dim[1].dim_value for entry in entries]
    if len(entries) > 1:
        if set(widths) != {1}:
            raise ModelError(
                f"{what} has {len(entries)} inputs of several columns: give it one matrix, or one a column"
            )
        return tuple(entry.name for entry in entries)
    held = {entry.key: entry.value for entry in model.metadata_props}
    try:
        named = tuple(inputs) or tuple(msgspec.json.decode(held.get(COLUMNS_KEY, "[]"), type=list[str]))
    except msgspec.DecodeError:
        named = ()
    if not named:
        raise ModelError(f"{what} does not name its {widths[0] or ''} input columns: give them, as --inputs a,b,c")
    if widths[0] not in (0, len(named)):
        raise ModelError(f"{what} has {widths[0]} input columns, {len(named)} are named: name each, in order")
    return named


def _outputs_of(what: str, model: onnx.ModelProto, pipeline: Pipeline) -> dict[str, str]:
    """Declared output -> the graph's name of it."""
    found = {entry.name: entry for entry in model.graph.output}
    if len(found) == 1 == len(pipeline.output_names):
        chosen = {pipeline.output_names[0]: next(iter(found))}
    else:
        chosen = {name: name for name in pipeline.output_names}
    if set(chosen.values()) != set(found):
        raise ModelError(
            f"{what} answers {', '.join(found) or 'nothing'}, pipeline {pipeline.name} declares "
            f"{', '.join(pipeline.output_names)}: keep these alone, one number a row each (a classifier's probability)"
        )
    for name in chosen.values():
        tensor = found[name].type.tensor_type
        wide = len(tensor.shape.dim) == 2 and tensor.shape.dim[1].dim_value != 1
        if tensor.elem_type not in ANSWERS or len(tensor.shape.dim) not in (1, 2) or wide:
            raise ModelError(
                f"{what}: output {name} is not one float32 or float64 number a row: convert it to (rows,) or (rows, 1)"
            )
    return chosen


def _booster(path: Path) -> lightgbm.Booster:
    import lightgbm

    text = rewritten(read_text(_read(path), path.name), path.name)
    try:
        booster = lightgbm.Booster(model_str=text)
        # What a text without any tree is noticed by.
        if not booster.num_trees() or booster.num_model_per_iteration() != 1:
            raise ModelError(f"{path.name} does not answer one number a row: train one model per output")
    except (lightgbm.basic.LightGBMError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{path.name} is not a LightGBM model's text ({reason}): save it with save_model") from None
    return booster


def _fitted(output: str, booster: lightgbm.Booster, path: Path) -> Fitted:
    lines = booster.model_to_string().split("\n", 50)
    words = next((line for line in lines if line.startswith("objective=")), "objective=regression")[10:].split()
    name, options = words[0], dict(word.split(":", 1) for word in words[1:] if ":" in word)
    if name not in LINKS or "sqrt" in words:
        raise ModelError(
            f"{path.name} has the objective {' '.join(words)}: these can be used: {', '.join(sorted(LINKS))}"
        )
    trees_of(booster, path.name)  # refuses by the file's name what the graph could not say
    return Fitted(
        output=output,
        booster=booster,
        reference=Reference(weights={}, damping=1.0),
        link=LINKS[name],
        steepness=float(options.get("sigmoid", "1")),
    )


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}): name a model's file") from None
    if len(data) > FILE_BYTES_MAX:
        raise UsageError(f"{path} has more than {FILE_BYTES_MAX:,} bytes: give a smaller model")
    return data


def _doubles(values: Any) -> pa.Array:
    import pyarrow as pa

    return pa.array(np.asarray(values, dtype=np.float64))


def _parquet(table: pa.Table) -> bytes:
    import io

    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()
