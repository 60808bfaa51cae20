"""The one scoring function of batch, stream and lookup: features in, predictions out.

The only module that imports ONNX Runtime, and only when a model is loaded. A
model is one ONNX graph: one input `features` (rows, columns), one float32 output
(rows,) per output of the pipeline, in the output's own unit. The names of its
columns stand in the graph's own metadata, and must be those of the manifest.

The input is float32, or float64 if a column's declared type needs it. In a float64
input a column that is declared float32 is rounded to float32 first: batch, stream
and lookup read it from stores of other types, and must ask the model the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from almanac.errors import FeatureError, ModelError, PredictionError
from almanac.model_graph import check_graph
from almanac.pipeline import Pipeline
from almanac.registry import MODEL_FILE, ModelVersion

if TYPE_CHECKING:
    import onnxruntime
    import pyarrow as pa

ROWS_BATCH_MAX = 16_384
"""Rows that ONNX Runtime is given at once: some MB of features."""
ENTITIES_NAMED_MAX = 5
"""Entities that an error names."""

INPUT_NAME = "features"
COLUMNS_KEY = "almanac.inputs"
"""Key of the graph's metadata under which the input columns stand, a JSON list in order."""
DTYPES_KEY = "almanac.dtypes"
"""The same of the columns' types, `float32` or `float64`; without it all are float32."""

Floats = NDArray[np.float32]
Matrix = NDArray[np.float32] | NDArray[np.float64]
DTYPE_OF = {"float32": np.float32, "float64": np.float64}


@dataclass(frozen=True)
class Scorer:
    """A loaded model. Safe to use from several threads.

    Make one with `Scorer.load`.
    """

    model_id: str
    inputs: tuple[str, ...]
    dtypes: tuple[str, ...]
    outputs: tuple[str, ...]
    entity: str
    session: onnxruntime.InferenceSession

    @classmethod
    def load(cls, version: ModelVersion, pipeline: Pipeline, *, threads: int = 1) -> Scorer:
        """Load a version for a pipeline, after everything about it was found to match.

        Args:
            version: from `Registry.resolve`.
            pipeline: whose outputs and FeatureService the model must have.
            threads: that ONNX Runtime may use for one call.

        Raises:
            ModelError: the file was changed, needs other files or operators, or the model's
                inputs, outputs or FeatureService are not the expected ones; says which.
        """
        manifest = version.manifest
        _expect(version.id, "FeatureService", (pipeline.features,), (manifest.features,))
        _expect(version.id, "outputs", pipeline.output_names, manifest.outputs)
        columns = tuple(column.name for column in manifest.inputs)
        scorer = cls.open(version.read(MODEL_FILE), version.id, entity=pipeline.entity, threads=threads)
        _expect(version.id, "input columns", columns, scorer.inputs)
        _expect(version.id, "input types", tuple(column.dtype for column in manifest.inputs), scorer.dtypes)
        _expect(version.id, "graph outputs", manifest.outputs, scorer.outputs)
        return scorer

    @classmethod
    def open(cls, data: bytes, model_id: str, *, entity: str, threads: int = 1) -> Scorer:
        """Load a graph that is not registered yet; `load` is for all others.

        Raises:
            ModelError: it needs other files or operators, or is not shaped as this module's docstring says.
        """
        check_graph(model_id, data)
        session = open_session(model_id, data, threads)
        columns, dtypes = _check_session(model_id, session)
        return cls(model_id, columns, dtypes, tuple(entry.name for entry in session.get_outputs()), entity, session)

    @property
    def dtype(self) -> type[np.float32] | type[np.float64]:
        """Of the matrix that the graph takes."""
        return np.float64 if "float64" in self.dtypes else np.float32

    def usable(self, name: str, values: NDArray[Any]) -> NDArray[np.bool_]:
        """Which numbers of an input column the model can take: finite after they were rounded as it reads them."""
        return np.isfinite(_rounded(values, self.dtypes[self.inputs.index(name)]))

    def score(self, features: Mapping[str, NDArray[Any]] | pa.Table) -> dict[str, Floats]:
        """Predict every output for every row.

        Args:
            features: a column of n numbers for each name in `inputs`, in any order; other columns are
                ignored, but the entity's, if it is there, is used to name rows in errors.

        Returns:
            For each output, float32 (n,), in its own unit; empty for no rows.

        Raises:
            FeatureError: a column is missing, not numeric, of another length, or has nulls or NaN.
            PredictionError: a prediction is NaN or infinite, or there is not one a row.
        """
        columns = _columns(features)
        return self._run(self._matrix(columns), lambda bad: self._entities(columns, bad))

    def score_matrix(self, matrix: Matrix) -> dict[str, Floats]:
        """As `score`, of the input columns side by side: (n, inputs), float32 or float64 as `dtype` says.

        Raises:
            FeatureError: it has another shape, or a number that is NaN or infinite.
            PredictionError: a prediction is NaN or infinite, or there is not one a row.
        """
        if matrix.dtype != self.dtype or matrix.ndim != 2 or matrix.shape[1] != len(self.inputs):
            raise FeatureError(
                f"the inputs of model {self.model_id} are {matrix.dtype} {matrix.shape}, expected "
                f"{self.dtype.__name__} with {len(self.inputs)} columns: train on the features there are"
            )
        self._check_finite(matrix, lambda _: "")
        return self._run(matrix, lambda _: "")

    def _run(self, matrix: Matrix, named: Callable[[NDArray[np.bool_]], str]) -> dict[str, Floats]:
        batches = [
            self.session.run(list(self.outputs), {INPUT_NAME: matrix[start : start + ROWS_BATCH_MAX]})
            for start in range(0, len(matrix), ROWS_BATCH_MAX)
        ]
        found: dict[str, Floats] = {}
        for index, output in enumerate(self.outputs):
            parts = [np.asarray(batch[index], dtype=np.float32) for batch in batches]
            found[output] = np.concatenate(parts) if parts else np.empty(0, dtype=np.float32)
            if len(found[output]) != len(matrix):
                raise PredictionError(
                    f"model {self.model_id} answered {len(found[output]):,} numbers in {output} for {len(matrix):,} "
                    "rows: convert it to give one number a row, or roll the model's alias back"
                )
            bad = ~np.isfinite(found[output])
            if bad.any():
                raise PredictionError(
                    f"model {self.model_id} answered NaN or infinity in {output} for {int(bad.sum())} of {len(bad)} "
                    f"rows{named(bad)}: look at their features, or roll the model's alias back"
                )
        return found

    def _matrix(self, columns: Mapping[str, NDArray[Any]]) -> Matrix:
        """The input columns side by side, (n, columns), every number finite."""
        missing = [name for name in self.inputs if name not in columns]
        if missing:
            raise FeatureError(
                f"{len(missing)} of the {len(self.inputs)} input columns of model {self.model_id} are missing "
                f"({', '.join(missing[:ENTITIES_NAMED_MAX])}): retrieve them, or train on the features there are"
            )
        rows = len(columns[self.inputs[0]]) if self.inputs else 0
        matrix: Matrix = np.empty((rows, len(self.inputs)), dtype=self.dtype)  # type: ignore[assignment]
        for index, name in enumerate(self.inputs):
            try:
                matrix[:, index] = _rounded(columns[name], self.dtypes[index])
            except (TypeError, ValueError):
                raise FeatureError(
                    f"input column {name} is {columns[name].dtype} {columns[name].shape}, expected {rows} numbers: "
                    f"correct the feature view"
                ) from None
        self._check_finite(matrix, lambda bad: self._entities(columns, bad))
        return matrix

    def _check_finite(self, matrix: Matrix, named: Callable[[NDArray[np.bool_]], str]) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            total = matrix.sum(dtype=np.float64)
        if bool(np.isfinite(total)):  # which is so only where every number is
            return
        bad = ~np.isfinite(matrix)
        if bad.any():
            worst = int(bad.sum(axis=0).argmax())
            count = int(bad[:, worst].sum())
            raise FeatureError(
                f"input column {self.inputs[worst]} is missing or not finite in {count} of {len(bad)} "
                f"rows{named(bad[:, worst])}: materialize the features again, or mend their source"
            )

    def _entities(self, columns: Mapping[str, NDArray[Any]], bad: NDArray[np.bool_]) -> str:
        """` (cell_id 3, 17, …)`, if the entities are known."""
        if self.entity not in columns or len(columns[self.entity]) != len(bad):
            return ""
        chosen = columns[self.entity][bad]
        named = ", ".join(str(entity) for entity in chosen[:ENTITIES_NAMED_MAX])
        return f" ({self.entity} {named}{', …' if len(chosen) > ENTITIES_NAMED_MAX else ''})"


def _columns(features: Mapping[str, NDArray[Any]] | pa.Table) -> dict[str, NDArray[Any]]:
    """Columns as NumPy arrays; a null of an Arrow table becomes NaN."""
    if isinstance(features, Mapping):
        return {name: np.asarray(column) for name, column in features.items()}
    return {name: features.column(name).to_numpy() for name in features.column_names}


def _rounded(values: NDArray[Any], dtype: str) -> Matrix:
    """A column as its model reads it; a double beyond float32 becomes infinite.

    Whole numbers become doubles first, as they are where online features are read: rounded twice everywhere.
    """
    with np.errstate(over="ignore"):
        wide = values.astype(np.float64) if values.dtype.kind in "iuO" else values
        rounded: Matrix = wide.astype(DTYPE_OF[dtype], copy=False)
    return rounded


def _expect(model_id: str, what: str, expected: tuple[str, ...], found: tuple[str, ...]) -> None:
    if expected != found:
        raise ModelError(
            f"model {model_id} has other {what} than expected: found {', '.join(found) or 'none'}, "
            f"expected {', '.join(expected)}: train it again or move the alias"
        )


def open_session(model_id: str, data: bytes, threads: int) -> onnxruntime.InferenceSession:
    """ONNX Runtime's session of a graph that `check_graph` took.

    Raises:
        ModelError: it refuses the graph.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors share no other base class
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"model {model_id}: ONNX Runtime refuses {MODEL_FILE} ({reason}): train it again") from None


def _check_session(model_id: str, session: onnxruntime.InferenceSession) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names and types of the input columns, after the graph's inputs and outputs were found well shaped."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    _expect(model_id, "graph inputs", (INPUT_NAME,), tuple(entry.name for entry in inputs))
    metadata = session.get_modelmeta().custom_metadata_map
    try:
        columns = tuple(msgspec.json.decode(metadata[COLUMNS_KEY], type=list[str]))
    except (KeyError, msgspec.DecodeError):
        raise ModelError(f"model {model_id}: the graph does not name its input columns: train it again") from None
    try:
        told = msgspec.json.decode(metadata[DTYPES_KEY], type=list[Literal["float32", "float64"]])
    except KeyError:
        told = ["float32"] * len(columns)
    except msgspec.DecodeError:
        told = []
    _expect(model_id, "number of input types", (str(len(columns)),), (str(len(told)),))
    wanted = ("tensor(double)" if "float64" in told else "tensor(float)", *("tensor(float)",) * len(outputs))
    _expect(model_id, "graph types", wanted, tuple(entry.type for entry in (*inputs, *outputs)))
    width = inputs[0].shape[-1] if len(inputs[0].shape) == 2 else None
    _expect(model_id, "number of input columns", (str(len(columns)),), (str(width),))
    flat = tuple(entry.name for entry in outputs if len(entry.shape) == 1)
    _expect(model_id, "outputs of one number a row", tuple(entry.name for entry in outputs), flat)
    return columns, tuple(told)
