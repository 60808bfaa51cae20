"""The models of fresh computations: loaded once each, in a thread, with their hashes checked.

What is loaded stays in use whatever happens to its files. A model that does
not load is tried again after a moment, and until then every request is told why.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from almanac.errors import AlmanacError, ModelError
from almanac.pipeline import Pipeline

if TYPE_CHECKING:
    from almanac.scoring import Scorer

logger = logging.getLogger(__name__)

LOADED_MAX = 8
FAILURE_KEPT_SECONDS = 5.0
ALIAS_KEPT_SECONDS = 2.0

_Key = tuple[str, str]  # pipeline, model


class Models:
    """Loaded models by pipeline and model id.

    Args:
        root: the registry's folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._loaded: OrderedDict[_Key, Scorer] = OrderedDict()
        self._loading: dict[_Key, asyncio.Task[Scorer]] = {}
        self._failed: dict[_Key, tuple[float, str]] = {}
        self._aliases: dict[str, tuple[float, str]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="almanac-models")

    async def get(self, pipeline: Pipeline, model: str | None) -> Scorer:
        """A model, loaded; the one of the pipeline's alias if none is named.

        Whoever gives up waiting does not stop the loading.

        Raises:
            AlmanacError: it does not exist, was changed, or does not fit the pipeline.
        """
        loop = asyncio.get_running_loop()
        if model is None:
            known = self._aliases.get(pipeline.name)
            if known is None or loop.time() - known[0] > ALIAS_KEPT_SECONDS:
                named = await loop.run_in_executor(self._thread, aliased, self._root, pipeline)
                known = self._aliases[pipeline.name] = (loop.time(), named)
            model = known[1]
        key = (pipeline.name, model)
        if key in self._loaded:
            self._loaded.move_to_end(key)
            return self._loaded[key]
        failure = self._failed.get(key)
        if failure is not None and loop.time() - failure[0] < FAILURE_KEPT_SECONDS:
            raise ModelError(failure[1])
        if key not in self._loading:
            self._loading[key] = loop.create_task(self._load(pipeline, key))
            self._loading[key].add_done_callback(_heard)  # its error may find nobody waiting any more
        return await asyncio.shield(self._loading[key])

    async def close(self) -> None:
        """End the thread; a model that is being loaded is not waited for."""
        for task in self._loading.values():
            task.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _load(self, pipeline: Pipeline, key: _Key) -> Scorer:
        loop = asyncio.get_running_loop()
        try:
            scorer = await loop.run_in_executor(self._thread, load, self._root, pipeline, key[1])
        except AlmanacError as error:
            logger.warning("%s", error, extra={"pipeline": pipeline.name})
            told = str(error).replace(f"{self._root}/", "")  # callers need not know where this process keeps its files
            self._failed[key] = (loop.time(), told)
            raise ModelError(told) from None
        finally:
            del self._loading[key]
        self._failed.pop(key, None)
        self._loaded[key] = scorer
        if len(self._loaded) > LOADED_MAX:
            self._loaded.popitem(last=False)
        return scorer


def _heard(task: asyncio.Task[Scorer]) -> None:
    if not task.cancelled():
        task.exception()


def aliased(root: Path, pipeline: Pipeline) -> str:
    """Id of the version that the pipeline's alias names, such as `bikes-v3`.

    Raises:
        AlmanacError: no version has this alias.
    """
    from almanac.registry import Registry

    version = Registry(root).aliases(pipeline.model_name).get(pipeline.model_alias)
    if version is None:
        raise ModelError(f"no model {pipeline.model} is registered: run `almanac train {pipeline.name}`")
    return f"{pipeline.model_name}-v{version}"


def load(root: Path, pipeline: Pipeline, model: str) -> Scorer:
    """Load the version of an id such as `bikes-v3`; imports ONNX Runtime, so it is slow the first time.

    Raises:
        AlmanacError: no such version, or its files are not what its manifest says.
    """
    from almanac.registry import Registry
    from almanac.scoring import Scorer

    name, _, version = model.rpartition("-v")
    if not name or not version.isascii() or not version.isdigit():
        raise ModelError(f"{model} is not a version of the registry: publish a generation with a registered model")
    return Scorer.load(Registry(root).resolve(f"{name}@{version}"), pipeline)
