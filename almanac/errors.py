"""Every error Almanac raises on purpose, in one tree.

    AlmanacError
    ├── DeclarationError      a pipeline declaration contradicts itself      (exit 2)
    ├── UsageError            the caller asked for something that is not     (exit 2)
    │   ├── UnknownPipeline
    │   ├── UnknownEntity
    │   └── UnknownModel
    ├── DataError             input data cannot be used as it is             (exit 3)
    │   ├── SourceError       an observation file is unreadable or foreign
    │   ├── FeatureError      features are missing or of another schema
    │   ├── PredictionError   the model answered NaN or infinity
    │   ├── EventError        a stream event cannot be handled: dead-letter it
    │   └── GateError         a gate refused; the current generation stays
    ├── ModelError            a model's hash, inputs or outputs do not match (exit 3)
    ├── BlockError            a block is corrupt, or of a newer version      (exit 3)
    ├── Superseded            another attempt holds the fencing token        (exit 4)
    ├── StackError            an embedded server could not do as asked       (exit 5)
    └── Unavailable           a server did not answer: transient, retry      (exit 6)

Only `Unavailable` is worth retrying unchanged; everything else is terminal
until somebody does what the message says. Messages have three parts: what
happened, to which thing, and what to do about it.
"""

from __future__ import annotations


class AlmanacError(Exception):
    """Base of all deliberate errors; `str(error)` is one line for a person."""

    exit_code = 1


class DeclarationError(AlmanacError):
    """A pipeline declaration is missing a field or contradicts itself: edit the declaration."""

    exit_code = 2


class UsageError(AlmanacError):
    """The caller named something that does not exist or does not fit: correct the call."""

    exit_code = 2


class UnknownPipeline(UsageError):
    """No declaration has this name: `almanac pipelines` lists those that exist."""


class UnknownEntity(UsageError):
    """The pipeline does not cover this entity: it is outside the grid or was never predicted."""


class UnknownModel(UsageError):
    """The registry has no such model, version or alias: `almanac models` lists them."""


class DataError(AlmanacError):
    """Input data cannot be used as it is: mend or replace the data."""

    exit_code = 3


class SourceError(DataError):
    """An observation file is unreadable, truncated, or has other coordinates."""


class FeatureError(DataError):
    """Features are missing or have another schema than the model was trained on."""


class FilesChanged(FeatureError):
    """Feature files were written anew while they were read: whoever asks again reads the new ones."""


class PredictionError(DataError):
    """A model answered NaN or infinity, or cannot be asked what the features say; nothing was published."""


class EventError(DataError):
    """A stream event cannot be handled; it is kept, raw, in the dead-letter topic.

    `reason` is a short stable word for metrics and headers, such as `not-json`.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class GateError(DataError):
    """A gate refused its input; the current generation stays as it is."""


class ModelError(AlmanacError):
    """A registered model's hash, input schema or outputs do not match: register it again."""

    exit_code = 3


class BlockError(AlmanacError):
    """A block's bytes are corrupt or were written by a newer version: rebuild it from Postgres."""

    exit_code = 3


class Superseded(AlmanacError):
    """Another attempt took the fencing token; this one changed nothing and must stop."""

    exit_code = 4


class StackError(AlmanacError):
    """An embedded server could not be started, stopped or adopted."""

    exit_code = 5


class Unavailable(AlmanacError):
    """A server did not answer in time. Transient: retry, or look at `almanac status`."""

    exit_code = 6
