"""Settings: environment variables over what `almanac up` wrote down over defaults.

Every process of Almanac reads the same three layers, most specific first:

1. environment variables with the prefix `ALMANAC_` (`ALMANAC_POSTGRES_URL=…`); a
   setting that bears a secret may name a file instead (`ALMANAC_POSTGRES_URL_FILE=…`);
2. `<state_dir>/endpoints.json`, which `almanac up` writes (mode 0600) with the
   addresses and passwords of the servers it started;
3. the defaults below.

Naming a server by URL in layer 1 means that `almanac up` does not start it.
"""

from __future__ import annotations

import json
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from almanac.errors import UsageError

PROJECT_ROOT = Path(__file__).resolve().parent.parent
ENDPOINTS_FILE = "endpoints.json"
MODELS, FEATURES, QUARANTINE, REPORTS, RUNS = "models", "features", "quarantine", "reports", "runs"
DATA_FOLDERS = (MODELS, FEATURES, QUARANTINE, REPORTS, RUNS)
"""Folders of the state directory beside those of the servers: `almanac down --purge` removes these too."""
WORKING_PREFIX = ".backup-"
"""Of folders of the state directory that a backup or a restore works in; one that was killed leaves its own."""
ENV_PREFIX = "ALMANAC_"
FILE_SUFFIX = "_FILE"
SECRET_SETTINGS = ("postgres_url", "redis_url", "airflow_password", "alert_webhook_url", "origin_secret")
"""Settings that bear a password, and may therefore come from a file that a variable names."""
SECRET_BYTES_MAX = 16_384


def secret_file_variable(name: str) -> str:
    """The variable that names the file of a secret-bearing setting."""
    return f"{ENV_PREFIX}{name.upper()}{FILE_SUFFIX}"


def read_secret(path: Path, variable: str) -> str:
    """The one line of a secret's file, without the newline that editors add.

    Raises:
        UsageError: it is missing, unreadable, empty, or not one line of text; quotes nothing of it.
    """
    try:
        with path.open("rb") as file:
            found = file.read(SECRET_BYTES_MAX + 1)
        text = found.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise UsageError(f"{path} ({variable}) is not text: write the secret as one line of UTF-8") from None
    except OSError as error:
        raise UsageError(
            f"{path} ({variable}) cannot be read ({error.strerror}): make it readable here, or unset {variable}"
        ) from None
    if not text.strip():
        raise UsageError(f"{path} ({variable}) is empty: write the secret into it, or unset {variable}")
    if len(found) > SECRET_BYTES_MAX or not text.isprintable():
        raise UsageError(f"{path} ({variable}) is not one line of at most {SECRET_BYTES_MAX:,} bytes: correct it")
    return text


def source_files(text: str) -> dict[str, Path]:
    """The file of each pipeline that `source_data` names.

    Raises:
        ValueError: not of the form `pipeline=path,…`, or a pipeline twice.
    """
    found: dict[str, Path] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        pipeline, sign, path = (word.strip() for word in part.partition("="))
        if not (sign and path and re.fullmatch(r"[a-z][a-z0-9_]*", pipeline)) or pipeline in found:
            raise ValueError(f"{part!r}: give each pipeline one file, as bikes=/data/rides.parquet")
        found[pipeline] = Path(path)
    return found


class SecretFilesSource(PydanticBaseSettingsSource):
    """Part of layer 1: secrets from the files that variables name, as container engines hand them out."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        raise NotImplementedError  # all at once in __call__

    def __call__(self) -> dict[str, Any]:
        found = {}
        for name in SECRET_SETTINGS:
            variable = secret_file_variable(name)
            path = os.environ.get(variable)
            if not path:
                continue
            plain = variable.removesuffix(FILE_SUFFIX)
            if os.environ.get(plain):
                raise UsageError(f"{plain} and {variable} are both set: unset one of them")
            found[name] = read_secret(Path(path).expanduser(), variable)
        return found


class _EndpointsSource(PydanticBaseSettingsSource):
    """Layer 2: addresses of the embedded servers, written by `almanac up`."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        raise NotImplementedError  # the whole file is read at once in __call__

    def __call__(self) -> dict[str, Any]:
        state_dir = Path(self.current_state.get("state_dir") or Settings.model_fields["state_dir"].default)
        path = state_dir / ENDPOINTS_FILE
        try:
            found = json.loads(path.read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise UsageError(
                f"{path} cannot be read ({error}): run `almanac down`, remove it, and `almanac up`"
            ) from None
        return {name: value for name, value in found.items() if name in Settings.model_fields}


class Settings(BaseSettings):
    """All settings of all processes; `docs/operations.md` documents each one."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="ignore", frozen=True)

    state_dir: Path = Field(
        PROJECT_ROOT / ".almanac", description="Where the embedded servers, models and offline features live."
    )
    cache_dir: Path = Field(
        PROJECT_ROOT / ".cache",
        description="Downloads that outlive a state directory (Kafka's jars), and facts about code.",
    )
    pipelines: str = Field(
        "pipelines",
        description="Comma-separated Python packages, modules or .py files that hold declarations.",
    )
    feature_repo: str = Field(
        "", description="Comma-separated Feast files, or folders of them, besides features/repo in the checkout."
    )
    dags: Path | None = Field(
        None, description="Folder with DAG files of your own, which the embedded Airflow runs beside ours."
    )
    postgres_url: str | None = Field(None, description="postgresql:// URL of the record; unset: embedded.")
    redis_url: str | None = Field(None, description="redis:// URL of the cache; unset: embedded.")
    kafka_bootstrap: str | None = Field(None, description="host:port[,…] of the brokers; unset: embedded.")
    origin_secret: str | None = Field(
        None, description="Secret by which stream workers prove where an event first stood; older ones after a space."
    )
    airflow_url: str | None = Field(None, description="Base URL of Airflow's API server; unset: embedded.")
    airflow_username: str = Field("admin", description="User for Airflow's API.")
    airflow_password: str | None = Field(None, description="Password for Airflow's API; embedded: generated.")
    lookup_url: str | None = Field(None, description="Base URL of the lookup service, for the command line.")
    lookup_host: str = Field("127.0.0.1", description="Address the lookup service listens on.")
    lookup_port: PositiveInt | None = Field(None, description="Port of the lookup service; unset: a free one.")
    metrics_host: str = Field("127.0.0.1", description="Address of `/metrics` of stream, reconciler and monitor.")
    metrics_port: NonNegativeInt | None = Field(
        None, description="Port of this process's `/metrics`; `almanac up` counts on from it, a port each."
    )
    reconciler_url: str | None = Field(None, description="Base URL of the reconciler's `/metrics` and `/readyz`.")
    stream_url: str | None = Field(None, description="Base URL of the stream's `/metrics` and `/readyz`.")
    monitor_url: str | None = Field(None, description="Base URL of the monitor's `/metrics`, `/readyz` and `/alerts`.")
    log_format: Literal["text", "json", "logfmt"] = Field("text", description="How log lines are written.")
    alert_webhook_url: str | None = Field(
        None, description="http(s) URL that the monitor tells of alerts, in the JSON of Alertmanager's webhook."
    )
    fresh_for_seconds: PositiveFloat | None = Field(
        None,
        description="Overrides every pipeline's `fresh_for` in the lookup process; for demonstrations and drills.",
    )
    source_data: str = Field(
        "",
        description="Files that sources read, comma-separated, as pipeline=path; a pipeline without one is simulated.",
    )
    source_seed: int = Field(2019, description="Seed of simulated sources.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment first, files named in it alike, then the endpoints file; no `.env` magic."""
        # Before the environment, because a variable that is set but empty must not hide its file.
        return init_settings, SecretFilesSource(settings_cls), env_settings, _EndpointsSource(settings_cls)

    @field_validator("source_data")
    @classmethod
    def _names_files(cls, text: str) -> str:
        source_files(text)
        return text

    def data_of(self, pipeline: str) -> Path | None:
        """The file that a pipeline's source reads; None for a simulated one."""
        return source_files(self.source_data).get(pipeline)

    def need(self, name: str) -> str:
        """Return a server's address, or say plainly that there is none.

        Raises:
            UsageError: the setting is unset and no stack of this state directory is up.
        """
        value = getattr(self, name)
        if not value:
            raise UsageError(f"no {name} is known: run `almanac up`, or set ALMANAC_{name.upper()}")
        return str(value)

    @property
    def models_dir(self) -> Path:
        """The model registry: one folder per model, one below it per version."""
        return self.state_dir / MODELS

    @property
    def features_dir(self) -> Path:
        """Offline feature Parquet files and Feast's registry."""
        return self.state_dir / FEATURES


def load_settings(**overrides: Any) -> Settings:
    """Read the three layers now.

    Raises:
        UsageError: a variable has a value of the wrong kind; names variable and remedy.
    """
    try:
        return Settings(**overrides)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "?"
        got = "" if name in SECRET_SETTINGS else f", got {first.get('input')!r}"
        raise UsageError(
            f"{ENV_PREFIX}{name.upper()} is not usable ({first['msg']}{got}): correct or unset it"
        ) from None


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The settings of this process, read once."""
    return load_settings()
