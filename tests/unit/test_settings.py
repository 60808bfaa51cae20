"""The three layers of settings, and secrets that come from files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from almanac.errors import UsageError
from almanac.settings import SECRET_BYTES_MAX, SECRET_SETTINGS, load_settings, read_secret, secret_file_variable
from almanac.stack.places import Places
from almanac.stack.programs import environment_settings, program_environment

URL = "postgresql://almanac:hunter2@db/almanac"
VARIABLE = "ALMANAC_POSTGRES_URL_FILE"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment that names nothing but an empty state directory."""
    for name in list(os.environ):
        if name.startswith("ALMANAC_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("ALMANAC_STATE_DIR", str(tmp_path / "state"))


@pytest.mark.parametrize("name", SECRET_SETTINGS)
@pytest.mark.parametrize("newline", ["", "\n", "\r\n"])
def test_a_secret_comes_from_the_file_a_variable_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, newline: str
) -> None:
    (tmp_path / "secret").write_bytes(f"{URL}{newline}".encode())
    monkeypatch.setenv(secret_file_variable(name), str(tmp_path / "secret"))
    assert getattr(load_settings(), name) == URL
    assert getattr(environment_settings(), name) == URL
    assert name in environment_settings().model_fields_set


def test_a_file_wins_over_what_up_wrote_down_and_over_an_empty_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "endpoints.json").write_text(json.dumps({"postgres_url": "postgresql://embedded/almanac"}))
    assert load_settings().postgres_url == "postgresql://embedded/almanac"
    (tmp_path / "secret").write_text(URL)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "secret"))
    monkeypatch.setenv("ALMANAC_POSTGRES_URL", "")
    assert load_settings().postgres_url == URL
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.setenv("ALMANAC_POSTGRES_URL", "postgresql://plain/almanac")
    assert load_settings().postgres_url == "postgresql://plain/almanac"


def test_both_forms_at_once_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(URL)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "secret"))
    monkeypatch.setenv("ALMANAC_POSTGRES_URL", "postgresql://plain/almanac")
    with pytest.raises(UsageError, match=f"ALMANAC_POSTGRES_URL and {VARIABLE} are both set: unset one"):
        load_settings()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"hunter2\nsecond line\n", "not one line"),
        (b"hunter2\x00", "not one line"),
        (b"\xff\xfe\x00", "not text"),
        (b"hunter2" * SECRET_BYTES_MAX, "not one line of at most 16,384 bytes"),
        (None, "cannot be read (No such file or directory)"),
    ],
)
def test_an_unusable_file_is_named_and_not_quoted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None, words: str
) -> None:
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv(VARIABLE, str(path))
    for read in (load_settings, environment_settings):
        with pytest.raises(UsageError) as raised:
            read()
        message = str(raised.value)
        assert words in message
        assert str(path) in message
        assert VARIABLE in message
        assert "hunter2" not in message
        assert "\n" not in message


def test_a_folder_or_a_forbidden_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read \\(Is a directory\\)"):
        read_secret(tmp_path, VARIABLE)

    def forbidden(path: Path, mode: str) -> None:  # root may read everything: a real one cannot be had here
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", forbidden)
    with pytest.raises(UsageError, match="cannot be read \\(Permission denied\\): make it readable here"):
        read_secret(tmp_path / "secret", VARIABLE)


def test_programs_of_the_stack_find_a_file_named_relative_to_where_up_was_called(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_text(URL)
    monkeypatch.setenv(VARIABLE, "secret")
    found = program_environment(Places.of(tmp_path / "state"), environment_settings())
    assert found[VARIABLE] == str(tmp_path / "secret")


def test_a_wrong_value_is_quoted_unless_it_may_be_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALMANAC_LOOKUP_PORT", "soon")
    with pytest.raises(UsageError, match=r"ALMANAC_LOOKUP_PORT is not usable .*'soon'"):
        load_settings()
    with pytest.raises(UsageError) as raised:
        load_settings(airflow_password=["hunter2"])
    assert "ALMANAC_AIRFLOW_PASSWORD" in str(raised.value)
    assert "hunter2" not in str(raised.value)


def test_each_pipelines_source_may_have_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALMANAC_SOURCE_DATA", " weather=/data/t2m.grib, shop = /data/a=b.parquet,")
    found = load_settings()
    assert found.data_of("weather") == Path("/data/t2m.grib")
    assert found.data_of("shop") == Path("/data/a=b.parquet")
    assert found.data_of("bikes") is None


@pytest.mark.parametrize("value", ["/data/t2m.grib", "weather=", "=/data", "weather=a,weather=b", "Weather=a"])
def test_files_that_name_no_pipeline_are_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("ALMANAC_SOURCE_DATA", value)
    with pytest.raises(UsageError, match=r"ALMANAC_SOURCE_DATA is not usable .*give each pipeline one file"):
        load_settings()
