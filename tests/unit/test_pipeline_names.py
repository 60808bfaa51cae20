"""Which names a pipeline may have, so that no other pipeline's tables have them too."""

from __future__ import annotations

import pytest

from almanac.checking import need_name
from almanac.errors import DeclarationError
from serving_cache.layout import child_name, table_name
from tests.generations import grid_pipeline


@pytest.mark.parametrize("name", ["weather_g1", "weather_g0", "w_g1234567890", "weather__g7", "weather_g1_g2"])
def test_a_name_that_another_pipelines_generation_has_is_refused(name: str) -> None:
    other, _, number = name.rpartition("_g")
    assert table_name(name) == child_name(other, int(number))
    with pytest.raises(DeclarationError, match=rf"'{name}'.*generations end in _g and a number: name it without"):
        grid_pipeline(name)


@pytest.mark.parametrize("name", ["weather_g", "weather_g1_north", "weatherg1", "g1", "weather_g1x", "weather_2"])
def test_other_names_are_free(name: str) -> None:
    assert grid_pipeline(name).name == name


def test_outputs_and_entities_have_no_tables() -> None:
    need_name("Output.name", "wind_g10")
    assert grid_pipeline(entity="cell_g1").entity == "cell_g1"
