"""The door `almanac models add --lightgbm`: texts of models, a field, a line or a sign of which is another."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before LightGBM is loaded: threads of its own would not be there after a fork

import re
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import lightgbm
import numpy as np

from almanac.errors import ModelError
from jobs.training import tree_rewriting, tree_text
from jobs.training.tree_rewriting import rewritten
from jobs.training.tree_text import read_text
from jobs.training.trees import trees_of
from tests.fuzz.reasons import Raises
from tests.fuzz.runner import ACCEPTED, MEBIBYTE, OneByOne, Verdict

CHILD_SECONDS_MAX = 10
CHILD_BYTES_MAX = 4 << 30
NUMBERS = (
    "0", "-1", "1", "2", "-2", "2147483647", "-2147483648", "99999999999999999999", "1e400", "nan", "inf", "-inf", "",
    "1.5", "0x10", "100000000", "-2000000000", "4294967295", "1e-320", "a" * 50,
)  # fmt: skip
OBJECTIVES = (
    "regression", "regression sqrt", "binary sigmoid:0", "binary sigmoid:1e5", "binary sigmoid:-1", "nonsense",
    "poisson",
    "multiclass num_class:3", "lambdarank", "quantile alpha:0.5", "regression \x1b[31m", "binary sigmoid:" + "9" * 40,
)  # fmt: skip
PANDAS = (
    "null",
    "[]",
    "[[1, 2], [3]]",
    '[["a", "b"]]',
    "[" * 5_000,
    "{}",
    '"a"',
    "[[[1]]]",
    "[1]",
    "[[1e400]]",
    "nan",
    "",
)
FIRST_CHECK = "tree_text.read_text#"
"""Refused by these a text is none, cut off, or two."""
RAISES = Raises((tree_text, tree_rewriting), ("ModelError", "unusable"))
ROWS = np.random.default_rng(1).normal(size=(300, 4))
ROWS[:, 3] = np.random.default_rng(2).integers(0, 40, 300)


class LightGbmText(OneByOne):
    """The door."""

    reasons = RAISES.names | {"refused by LightGBM", "refused by trees_of"}
    memory_bytes_max = 256 * MEBIBYTE

    @contextmanager
    def opened(self, folder: Path) -> Iterator[LightGbmText]:
        """Valid texts of several kinds of model."""
        self._valid = [
            _trained(objective="regression"),
            _trained(objective="binary", sigmoid=2.0),
            _trained(objective="regression", boosting="rf", bagging_fraction=0.5, bagging_freq=1),
            _trained(objective="regression", zero_as_missing=True),
        ]
        self._others = [
            _trained(objective="multiclass", num_class=3),
            _trained(linear_tree=True, objective="regression"),
        ]
        yield self

    def send(self, random: Random) -> Verdict:
        """Another one each time."""
        text = random.choice(self._others if random.random() < 0.03 else self._valid)
        for _ in range(random.choice((0, 1, 1, 1, 2, 3))):
            text = _mutated(text, random)
        if random.random() < 0.9:
            text = _sized(text)
        data = text.encode(errors="surrogatepass")
        if random.random() < 0.01:
            data = data[: random.randrange(len(data))] + bytes([random.randrange(256)]) + data[-random.randrange(999) :]
        try:
            made = rewritten(read_text(data, "m.txt"), "m.txt")
        except ModelError as error:
            reason = RAISES.of(error)
            return Verdict(reason, not reason.startswith(FIRST_CHECK))
        return Verdict(_answered(made), True)


def _answered(text: str) -> str:
    """Give the text to LightGBM in a process of its own, which must not be ended by it."""
    child = os.fork()
    if child == 0:
        code = 9
        try:
            code = _in_child(text)
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) or os.WEXITSTATUS(status) not in (0, 1, 2):
        raise AssertionError(f"status {status} of LightGBM's process over this text:\n{text}")
    return (ACCEPTED, "refused by LightGBM", "refused by trees_of")[os.WEXITSTATUS(status)]


def _in_child(text: str) -> int:
    signal.alarm(CHILD_SECONDS_MAX)
    resource.setrlimit(resource.RLIMIT_AS, (CHILD_BYTES_MAX, CHILD_BYTES_MAX))
    for number in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    try:
        booster = lightgbm.Booster(model_str=text)
        booster.predict(ROWS[:20])
    except (lightgbm.basic.LightGBMError, ValueError):
        return 1
    try:
        trees_of(booster, "m.txt")
    except ModelError:
        return 2
    return 0


def _trained(**more: object) -> str:
    truth = ROWS[:, 0] * 2 + np.sin(ROWS[:, 1]) + ROWS[:, 3] % 3
    if more["objective"] in ("binary", "multiclass"):
        truth = (ROWS[:, 3] % int(str(more.get("num_class", 2)))).astype(float)
    params = {"verbose": -1, "num_leaves": 6, "min_data_in_leaf": 5, "min_data_per_group": 5, "num_threads": 1, **more}
    data = lightgbm.Dataset(ROWS, truth, categorical_feature=[3], params={"verbose": -1})
    made: str = lightgbm.train(params, data, 3).model_to_string()
    return made


def _sized(text: str) -> str:
    """With tree sizes that are right again, so that later checks are reached."""
    starts = [found.start() + 1 for found in re.finditer(r"\nTree=\d+\n", text)]
    end = text.find("\nend of trees") + 1
    sizes = (
        [len(text[a:b].encode(errors="replace")) for a, b in zip(starts, [*starts[1:], end], strict=True)]
        if end
        else []
    )
    return re.sub(r"\ntree_sizes=[^\n]*", "\ntree_sizes=" + " ".join(map(str, sizes)), text, count=1)


def _mutated(text: str, random: Random) -> str:
    lines = text.split("\n")
    at = random.randrange(len(lines))
    match random.randrange(14):
        case 0:
            del lines[at]
        case 1:
            lines.insert(at, random.choice(lines))
        case 2:
            place = random.randrange(len(lines[at]) + 1)
            lines[at] = lines[at][:place] + random.choice("\0\t\r\n =é€\ud800") + lines[at][place:]
        case 3:
            lines[at:] = lines[at + random.randrange(5) :]
        case 4:
            return random.choice(WHOLE)(text, random)
        case _:
            fields = [number for number, line in enumerate(lines) if line.partition("=")[2]]
            if not fields:
                return text
            at = random.choice(fields)
            name, _, value = lines[at].partition("=")
            lines[at] = f"{name}={' '.join(_words(value.split(' '), random))}"
    return "\n".join(lines)


def _words(words: list[str], random: Random) -> list[str]:
    at = random.randrange(len(words))
    match random.randrange(7):
        case 0:
            return []
        case 1:
            return words[:at] + words[at + 1 :]
        case 2:
            return [*words[:at], words[at], *words[at:]]
        case 3:
            return random.sample(words, len(words))
        case 4:
            words[at] = str(random.randrange(-10, 10))
        case _:
            words[at] = random.choice(NUMBERS)
    return words


WHOLE: tuple[Callable[[str, Random], str], ...] = (
    lambda text, random: text + text,
    lambda text, random: text[: random.randrange(len(text))],
    lambda text, random: re.sub(r"objective=.*", f"objective={random.choice(OBJECTIVES)}", text),
    lambda text, random: re.sub(r"feature_names=.*", "feature_names=a b b c", text),
    lambda text, random: re.sub(r"pandas_categorical:.*", f"pandas_categorical:{random.choice(PANDAS)}", text),
    lambda text, random: re.sub(r"leaf_value=\S+", f"leaf_value={random.choice(NUMBERS)}", text, count=1),
    lambda text, random: re.sub(r"decision_type=.*", lambda found: found[0].replace("2", "1"), text),
    lambda text, random: re.sub(r"num_leaves=.*", f"num_leaves={random.choice(NUMBERS)}", text, count=1),
    lambda text, random: re.sub(r"cat_threshold=.*", "cat_threshold=" + "1 " * 70_000, text, count=1),
    lambda text, random: re.sub(r"cat_boundaries=.*", "cat_boundaries=0 900", text, count=1),
    lambda text, random: re.sub(r"(?m)^threshold=.*", lambda found: found[0].replace(" 0 ", " 7 "), text),
)
"""What no single word comes to."""
DOOR = LightGbmText()
