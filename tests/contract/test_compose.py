"""docker-compose.yml without an engine: it fits the specification, and names only what the code has."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from graphlib import TopologicalSorter
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from almanac.production import health, secrets
from almanac.settings import SECRET_SETTINGS, Settings, load_settings, secret_file_variable
from almanac.stack import airflow, kafka, kafka_jars, postgres, redis
from almanac.stack.places import Places
from almanac.stack.programs import MANAGED, MODULES, NEEDS, QUIET
from streaming.process import INSTANCE, STOP_SECONDS_MAX
from tests.compose import (
    BESIDES,
    FILE,
    ONCE,
    ROOT,
    SECRET,
    TOOLS,
    document,
    interpolated,
    lasting,
    program_of,
    python_module,
    seconds,
    services,
    words_of,
)

SERVICES = sorted(services())
COMMAND_SECONDS_MAX = 120
PRODUCTION_ONLY = {"POSTGRES_ADMIN_URL_FILE", "AIRFLOW_DATABASE_URL_FILE", "AIRFLOW_HOME"}
AIRFLOWS = {"airflow", *airflow.COMMAND_LINES.values()}


def test_it_fits_the_compose_specification() -> None:
    schema = json.loads((files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json").read_text())
    validator = jsonschema.validators.validator_for(schema)(schema)
    validator.validate(document())
    assert not validator.is_valid({**document(), "services": {"a": {"imagine": "b"}}})


def test_no_variable_lacks_a_default_and_all_are_documented() -> None:
    text = FILE.read_text()
    with pytest.raises(AssertionError, match="NAME has no default"):
        interpolated("image: x:${NAME}")
    operations = (ROOT / "docs" / "operations.md").read_text()
    for name in set(re.findall(r"(?<!\$)\$\{(\w+)", text)):
        assert f"`{name}`" in operations, f"{name} is not in docs/operations.md"


# Processes


def test_the_processes_are_those_of_almanac_up() -> None:
    assert {program_of(name) for name in lasting()} == {*MANAGED, *BESIDES}


@pytest.mark.parametrize("name", SERVICES)
def test_commands_are_those_of_the_stack(name: str) -> None:
    program, command = program_of(name), services()[name].get("command", [])
    if program in airflow.ARGUMENTS:
        assert command == ["python", *airflow.words(program)]
    elif program in MODULES:
        assert command[:3] == ["python", "-m", MODULES[program]]
        assert len(command) == 3 or program == "stream"
    elif name in ONCE:
        assert python_module(command) is not None


def test_every_module_is_there_and_takes_its_arguments() -> None:
    calls = set()
    for service in services().values():
        for words in (service.get("command", []), service.get("healthcheck", {}).get("test", [])):
            if found := python_module(words):
                calls.add((found[0], tuple(found[1])))
    assert {module for module, _ in calls} >= {"airflow", "streaming", "almanac.production.prepare"}
    for module, arguments in calls - {call for call in calls if call[0] in AIRFLOWS}:
        spec = importlib.util.find_spec(module)
        assert spec is not None, f"there is no module {module}"
        if spec.submodule_search_locations is not None:
            assert importlib.util.find_spec(f"{module}.__main__") is not None, f"{module} cannot be run"
        if module == "almanac.production.health":
            assert arguments[0] in health.PROGRAMS
            assert len(arguments) == 1
        elif module == "streaming":
            assert arguments[0] == "--instance"
            assert INSTANCE.fullmatch(arguments[1])
        else:
            assert arguments == ()
    airflows = [list(arguments) for module, arguments in calls if module in AIRFLOWS]
    code = "import json, sys\nfrom airflow.cli import cli_parser\np = cli_parser.get_parser()\n"
    code += "for words in json.loads(sys.argv[1]):\n    p.parse_args(words)\n"
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(airflows)],
        capture_output=True, text=True, timeout=COMMAND_SECONDS_MAX, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


def test_workers_have_names_of_their_own_and_replicas_ports_of_their_own() -> None:
    workers = [services()[name]["command"][-1] for name in lasting() if program_of(name) == "stream"]
    assert len(set(workers)) == len(workers) >= 2
    published = [port.split(":")[-2] for name in lasting() for port in services()[name].get("ports", [])]
    assert len(set(published)) == len(published)
    assert sum(program_of(name) == "lookup" for name in lasting()) >= 2


# Settings and secrets


def environment_of(name: str) -> dict[str, str]:
    return dict(services()[name].get("environment", {}))


@pytest.mark.parametrize("name", SERVICES)
def test_every_variable_is_a_setting(name: str) -> None:
    known = {f"ALMANAC_{field.upper()}" for field in Settings.model_fields}
    known |= {secret_file_variable(field) for field in SECRET_SETTINGS}
    for variable, value in environment_of(name).items():
        assert isinstance(value, str), f"{variable} must be quoted"
        if variable.startswith("ALMANAC_"):
            assert variable in known, f"{name}: {variable} is no setting"
        elif services()[name]["image"].startswith("almanac:"):
            assert variable in QUIET or variable in PRODUCTION_ONLY or variable.startswith("AIRFLOW__"), variable


@pytest.mark.parametrize("name", SERVICES)
def test_settings_are_read_and_lead_to_services(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not services()[name]["image"].startswith("almanac:"):
        return
    secrets.make_secrets(tmp_path)
    for field in Settings.model_fields:
        monkeypatch.delenv(f"ALMANAC_{field.upper()}", raising=False)
    for variable, value in environment_of(name).items():
        if variable.startswith("ALMANAC_"):
            monkeypatch.setenv(variable, value.replace("/run/secrets", str(tmp_path)))
    found = load_settings()
    listening = {"postgres": 5432, "redis": 6379, "kafka": 9092, "airflow-api-server": 8080, "lookup-0": 8000}
    for field in ("postgres_url", "redis_url", "kafka_bootstrap", "airflow_url", "lookup_url"):
        if value := getattr(found, field):
            host, port = re.findall(r"([\w-]+):(\d+)(?:/\w*)?$", value)[0]
            assert listening[host] == int(port), f"{name}: {field} leads nowhere"
    if MODULES.get(program_of(name)):
        assert found.postgres_url
        assert found.redis_url
        assert getattr(found, health.PORTS[program_of(name)])


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_the_secrets_it_names_and_no_others(name: str) -> None:
    service = services()[name]
    mentioned = set(SECRET.findall(" ".join(words_of(service))))
    if name == "redis":
        mentioned |= set(SECRET.findall((ROOT / "deploy/redis/redis.conf").read_text()))
    assert mentioned == set(service.get("secrets", []))


def test_secret_files_are_those_that_are_made_and_git_ignores_them() -> None:
    declared = {name: (FILE.parent / value["file"]).resolve() for name, value in document()["secrets"].items()}
    assert declared == {name: secrets.FOLDER / name for name in secrets.FILES}
    granted = {name for service in services().values() for name in service.get("secrets", [])}
    assert granted == set(secrets.FILES)
    done = subprocess.run(
        ["git", "check-ignore", *map(str, declared.values())], cwd=ROOT, capture_output=True, text=True
    )
    assert len(done.stdout.splitlines()) == len(declared)


def test_no_password_stands_in_the_file() -> None:
    for line in FILE.read_text().splitlines():
        assert not re.search(r"(PASSWORD|SECRET|KEY|CONN)\w*: (?!/run/secrets/|/airflow|sed -z )", line), line


# Airflow


# What differs from `almanac up`, and why: addresses and paths of containers; secrets read from files; a fixed number
# of tasks instead of one made from this machine's cores.
AIRFLOW_DIFFERS = {
    "AIRFLOW_HOME", "AIRFLOW__API__HOST", "AIRFLOW__API__BASE_URL", "AIRFLOW__CORE__DAGS_FOLDER",
    "AIRFLOW__CORE__EXECUTION_API_SERVER_URL", "AIRFLOW__CORE__PARALLELISM",
    "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE", "AIRFLOW__LOGGING__BASE_LOG_FOLDER",
}  # fmt: skip
AIRFLOW_SECRETS = {
    "AIRFLOW__CORE__FERNET_KEY", "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "AIRFLOW__API__SECRET_KEY",
    "AIRFLOW__API_AUTH__JWT_SECRET",
}  # fmt: skip


@pytest.mark.parametrize("name", airflow.ARGUMENTS)
def test_airflow_is_configured_as_by_almanac_up(name: str, tmp_path: Path) -> None:
    expected = airflow.environment(Places.of(tmp_path), 8080, "postgresql+psycopg2://x", name)
    found = {key: value for key, value in environment_of(name).items() if key.startswith("AIRFLOW")}
    renamed = {key.removesuffix("_CMD") if key.removesuffix("_CMD") in AIRFLOW_SECRETS else key for key in found}
    assert renamed == set(expected)
    for key, value in expected.items():
        if key in AIRFLOW_SECRETS:
            assert SECRET.search(found[f"{key}_CMD"])
        elif key not in AIRFLOW_DIFFERS:
            assert found[key] == value, key


def test_airflow_gets_secrets_without_the_newline_at_the_end(tmp_path: Path) -> None:
    for key in AIRFLOW_SECRETS:
        command = environment_of("airflow-scheduler")[f"{key}_CMD"]
        name = SECRET.findall(command)[0]
        (tmp_path / name).write_bytes(b"a secret\r\n")
        words = shlex.split(command.replace("/run/secrets", str(tmp_path)))
        assert subprocess.run(words, capture_output=True, check=True).stdout == b"a secret"


def test_airflows_paths_lie_on_its_volume_and_in_the_image() -> None:
    found = environment_of("airflow-api-server")
    for key in (
        "AIRFLOW_HOME",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE",
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER",
    ):
        assert found[key].startswith("/airflow/")
    for name in (*airflow.ARGUMENTS, "prepare"):
        assert "airflow:/airflow" in services()[name]["volumes"]
    home = found["AIRFLOW_HOME"]
    assert environment_of("prepare")["AIRFLOW_HOME"] == home
    assert found["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"] == f"{home}/passwords.json"
    assert found["AIRFLOW__CORE__DAGS_FOLDER"] == "/opt/almanac/app/dags"
    assert list((ROOT / "dags").glob("*.py"))


# Servers


def test_servers_are_of_the_versions_that_are_tested() -> None:
    done = subprocess.run([postgres.binaries() / "postgres", "--version"], capture_output=True, text=True, check=True)
    embedded = re.findall(r"(\d+)\.\d+", done.stdout)[0]
    assert services()["postgres"]["image"].startswith(f"postgres:{embedded}.")
    versions = {root.split(":")[2] for root in kafka_jars.ROOTS if "org.apache.kafka" in root}
    assert services()["kafka"]["image"].removeprefix("apache/kafka:") in versions


def properties(text: str, separator: str) -> dict[str, str]:
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return {key.strip(): value.strip().strip("'") for key, _, value in (line.partition(separator) for line in lines)}


def test_kafka_is_configured_as_by_almanac_up() -> None:
    listeners = {
        "controller.quorum.voters",
        "listeners",
        "advertised.listeners",
        "listener.security.protocol.map",
        "log.dirs",
    }
    expected = properties(kafka.CONFIGURATION, "=")
    environment = environment_of("kafka")
    found = {
        key.removeprefix("KAFKA_").lower().replace("_", "."): value
        for key, value in environment.items()
        if key.startswith("KAFKA_") and key != "KAFKA_HEAP_OPTS"
    }
    assert set(found) - set(expected) == {"inter.broker.listener.name"}
    assert {k: v for k, v in found.items() if k in expected and k not in listeners} == {
        k: v for k, v in expected.items() if k not in listeners
    }
    names = re.findall(r"(\w+)://", found["listeners"])
    assert set(re.findall(r"(\w+):PLAINTEXT", found["listener.security.protocol.map"])) == set(names)
    assert f"kafka:{found['log.dirs']}" in services()["kafka"]["volumes"]


def test_redis_and_postgres_are_configured_as_by_almanac_up() -> None:
    expected = properties(redis.CONFIGURATION, " ")
    found = properties((ROOT / "deploy/redis/redis.conf").read_text(), " ")
    for key in ("port", "bind", "dir", "requirepass", "daemonize"):
        expected.pop(key)
    assert {key: found.get(key) for key in expected} == expected
    assert found["include"] == "/run/secrets/redis_conf"
    assert f"redis:{found['dir']}" in services()["redis"]["volumes"]

    wanted = properties(postgres.CONFIGURATION, "=")
    given = dict(word.removeprefix("--").split("=", 1) for word in services()["postgres"]["command"][1:])
    larger = {"listen_addresses", "max_connections", "shared_buffers"}
    assert {key: wanted[key] for key in given if key not in larger} == {
        k: v for k, v in given.items() if k not in larger
    }


# Health, order, limits


@pytest.mark.parametrize("name", sorted(lasting()))
def test_a_service_is_asked_for_its_health(name: str) -> None:
    check = services()[name]["healthcheck"]
    assert set(check) >= {"test", "interval", "timeout", "retries", "start_period"}
    if found := python_module(check["test"]):
        assert found == ("almanac.production.health", [program_of(name)])
    else:
        assert services()[name]["image"].split(":")[0] not in ("almanac",)


def test_services_start_in_the_order_of_the_stack() -> None:
    needs = {name: set(service.get("depends_on", {})) for name, service in services().items()}
    order = list(TopologicalSorter(needs).static_order())
    assert set(order) == set(services())

    def all_needs(name: str) -> set[str]:
        return needs[name] | {further for need in needs[name] for further in all_needs(need)}

    for name in lasting():
        assert set(NEEDS.get(program_of(name), ())) <= all_needs(name), name
    for service in services().values():
        for need, how in service.get("depends_on", {}).items():
            once = how["condition"] == "service_completed_successfully"
            assert once == (need in ONCE), need
            assert once or "healthcheck" in services()[need]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_confined(name: str) -> None:
    service = services()[name]
    assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.?\d*[\w.-]*", service["image"]), "pin the image"
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is (name != "kafka")
    assert name == "kafka" or re.fullmatch(r"[1-9]\d*:\d+", service["user"])  # kafka's image has a user of its own
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory"}
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    expected = "on-failure:5" if name in ONCE else "no" if name in TOOLS else "unless-stopped"
    assert service["restart"] == expected
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:"), "published on this machine alone unless .env says otherwise"
        assert "edge" in service["networks"]


@pytest.mark.parametrize("name", sorted(lasting()))
def test_a_service_gets_the_time_its_code_takes_to_stop(name: str) -> None:
    program = program_of(name)
    needed = MANAGED[program].stop_seconds if program in MANAGED else 10
    if program == "stream":
        needed = max(needed, STOP_SECONDS_MAX)
    assert seconds(services()[name]["stop_grace_period"]) > needed
    signal = services()[name].get("stop_signal", "SIGTERM")
    assert program not in MANAGED or signal == f"SIG{MANAGED[program].stop_signal}"


# Files and networks


def mounts(service: dict[str, Any]) -> list[tuple[str, str]]:
    return [(volume.split(":")[0], volume.split(":")[1]) for volume in service.get("volumes", [])]


def test_what_is_mounted_is_there_and_what_is_declared_is_used() -> None:
    named: set[str] = set()
    for name, service in services().items():
        for source, target in mounts(service):
            assert target.startswith("/")
            if source.startswith("./"):
                assert (ROOT / source).exists(), f"{name}: {source} is not there"
                assert service["volumes"][mounts(service).index((source, target))].endswith(":ro")
            else:
                named.add(source)
        if service["image"].startswith("almanac:"):
            assert set(mounts(service)) <= {("state", "/state"), ("airflow", "/airflow")}
            assert environment_of(name)["ALMANAC_STATE_DIR"] == "/state"
    assert named == set(document()["volumes"])
    used = {network for service in services().values() for network in service["networks"]}
    assert used == set(document()["networks"])
    assert document()["networks"]["data"] == {"internal": True}


def test_published_ports_are_those_the_processes_listen_on() -> None:
    listening = {
        "lookup": environment_of("lookup-0")["ALMANAC_LOOKUP_PORT"],
        "airflow-api-server": environment_of("airflow-api-server")["AIRFLOW__API__PORT"],
        "kafka": re.findall(r"EXTERNAL://:(\d+)", environment_of("kafka")["KAFKA_LISTENERS"])[0],
        "prometheus": "9090",
        "grafana": "3000",
    }
    published = {program_of(n): p.split(":")[-1] for n in services() for p in services()[n].get("ports", [])}
    assert published == listening
