"""A training whose features are written anew while they are read begins again, and not for ever."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from almanac.clock import utc_now
from almanac.errors import FeatureError, FilesChanged
from almanac.settings import load_settings
from features.offline.reading import file_errors
from jobs.training import ranker, train
from pipelines.shop import shop


@pytest.mark.parametrize(("changes", "begun"), [(0, 1), (2, 3)])
def test_it_begins_again(changes: int, begun: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beginnings: list[int] = []

    def trained(*asked: Any, **named: Any) -> str:
        beginnings.append(len(beginnings))
        if len(beginnings) <= changes:
            with file_errors(shop):
                raise FilesChanged(
                    "view item_together: 2026-10-13.parquet was written anew while it was read: ask again"
                )
        return "a version"

    said: list[str] = []
    monkeypatch.setattr(ranker, "train_ranking", trained)
    settings = load_settings(state_dir=tmp_path)
    assert train.train(shop, settings, now=utc_now(), progress=said.append) == "a version"
    assert (len(beginnings), len(said)) == (begun, changes)
    assert all("beginning again" in line and "2026-10-13.parquet" in line for line in said)


@pytest.mark.parametrize("error", [FilesChanged("again and again"), FeatureError("no rows")])
def test_what_does_not_pass_is_raised(error: FeatureError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beginnings: list[int] = []

    def trained(*asked: Any, **named: Any) -> None:
        beginnings.append(1)
        raise error

    monkeypatch.setattr(ranker, "train_ranking", trained)
    with pytest.raises(type(error), match=str(error)):
        train.train(shop, load_settings(state_dir=tmp_path), now=utc_now(), progress=lambda text: None)
    assert len(beginnings) == (train.BEGINNINGS_MAX if isinstance(error, FilesChanged) else 1)
