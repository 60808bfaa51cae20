"""The demonstration, on a small grid, every command that the README shows, and the demonstration of lists.

Hours turn meanwhile: within the rehearsal, while Airflow computes, and while parts are stopped; see `tests.turn`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from almanac.airflow_api import AirflowApi
from almanac.airflow_pause import dags_paused
from almanac.clock import PARTITION_KEY_FORMAT, floor_hour, format_time, parse_time, utc_now
from almanac.demo.past import REHEARSED_HOURS, UNTIL_HOURS
from almanac.errors import UsageError
from almanac.registry import Registry
from almanac.settings import load_settings
from serving_cache.postgres import PostgresStore
from serving_cache.records import GenerationRecord, State
from tests.acceptance.tiny_shop import shop
from tests.acceptance.tiny_weather import weather
from tests.baskets import register_sums
from tests.streams import eventually
from tests.style.test_docs import ROOT, commands_in
from tests.turn import clock

DEMO_SECONDS_MAX = 900
COMMAND_SECONDS_MAX = 200
OPERATIONS = ROOT / "docs" / "operations.md"
TINY = [Path(__file__).with_name(name) for name in ("tiny_weather.py", "tiny_shop.py")]
# Stages by number: the rehearsal; Airflow computes; parts are stopped. And of lists: Airflow computes; a purchase.
WITHIN_WEATHER = [f"--turn={stage}:within" for stage in (3, 4, 8)]
WITHIN_SHOP = [f"--turn={stage}:within" for stage in (1, 3)]
NOT_REPEATED = {"up", "train", "down"}  # the demonstration has just done these


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    state = tmp_path_factory.mktemp("state")
    found = {**os.environ, "ALMANAC_STATE_DIR": str(state), "ALMANAC_PIPELINES": ",".join(map(str, TINY))}
    found[clock.VARIABLE] = str(tmp_path_factory.mktemp("clock") / "ahead")
    clock.write(Path(found[clock.VARIABLE]), clock.behind(len(WITHIN_WEATHER)))
    dags = tmp_path_factory.mktemp("dags")
    (text,) = re.findall(r"^`after_weather\.py`:\n\n```python\n(.*?)```", OPERATIONS.read_text(), flags=re.S | re.M)
    (dags / "after_weather.py").write_text(text)
    found["ALMANAC_DAGS"] = str(dags)
    found.pop("ALMANAC_SOURCE_DATA", None)
    yield found
    subprocess.run(
        [sys.executable, "-m", "almanac.cli", "down"], env=found, cwd=ROOT, timeout=COMMAND_SECONDS_MAX, check=False
    )
    assert left_running(state) == []


def left_running(state: Path) -> list[str]:
    """Processes that still work below a state directory."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        try:
            inside = Path(process.cwd()).is_relative_to(state)
        except (psutil.Error, OSError):
            continue
        if inside or any(str(state) in word for word in process.info["cmdline"] or []):
            found.append(" ".join(process.info["cmdline"] or []))
    return found


def demonstrated(environment: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.turn", *options],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEMO_SECONDS_MAX,
        check=False,
    )


def held(done: subprocess.CompletedProcess[str], claims: int) -> None:
    """Every claim was made, and held."""
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
    assert "✗" not in done.stdout
    assert done.stdout.count("✓") >= claims


@pytest.fixture(scope="module")
def demo(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    done = demonstrated(environment, "--keep", "--own", *WITHIN_WEATHER)
    clock.write(Path(environment[clock.VARIABLE]), 0.0)  # of the hour that it has reached already: what follows is now
    return done


@pytest.mark.timeout(DEMO_SECONDS_MAX + 60)
def test_everything_the_demonstration_claims_holds(demo: subprocess.CompletedProcess[str]) -> None:
    held(demo, 12)
    assert demo.stdout.count("an hour turns within") == len(WITHIN_WEATHER)
    assert f"{len(WITHIN_WEATHER)} hours turned, at 1 of them a run was under way" in demo.stdout
    assert "started as scheduled: weather, weather_integrity, weather_training" in demo.stdout


@pytest.mark.timeout(900)
def test_the_readme_commands_work_as_shown(demo: subprocess.CompletedProcess[str], environment: dict[str, str]) -> None:
    assert demo.returncode == 0
    ran = 0
    for words in commands_in(ROOT / "README.md"):
        if words[0] != "almanac" or words[1] in NOT_REPEATED:
            continue
        event = '{"cell_id": 17, "observed_at": "2020-01-01T00:00:00Z", "t2m": 281.3}\n'
        done = subprocess.run(
            [sys.executable, "-m", "almanac.cli", *words[1:]],
            env=environment,
            cwd=ROOT,
            input=event,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS_MAX,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(words)}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        assert done.stdout.strip(), f"{' '.join(words)} printed nothing"
        ran += 1
    assert ran >= 8


def test_what_was_rehearsed_has_outcomes_and_is_not_rehearsed_again(
    demo: subprocess.CompletedProcess[str], environment: dict[str, str]
) -> None:
    assert demo.returncode == 0

    def almanac(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "almanac.cli", *words],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS_MAX,
            check=False,
        )

    found = json.loads(almanac("quality", "weather", "--json").stdout)
    paired = {(row["source"], row["output"]): row for row in found["paired"]}
    rehearsed = (REHEARSED_HOURS - UNTIL_HOURS) * 99
    for output, hours in (("t2m_1h", 1), ("t2m_6h", 6)):
        row = paired["stream", output]
        assert row["n"] >= rehearsed
        if row["n"] == rehearsed:  # no full hour has passed since, which settles more
            assert (row["age_seconds"], row["beside_age_seconds"]) == (hours * 3600, (hours + 1) * 3600)
    assert paired["stream", "t2m_1h"]["ratio"] < 1
    assert found["next_due"] is not None
    again = almanac("rehearse", "weather")
    assert again.returncode != 0
    assert "what is served never goes back" in again.stderr


def test_the_airflow_dag_is_as_its_users_expect(
    demo: subprocess.CompletedProcess[str], environment: dict[str, str]
) -> None:
    assert demo.returncode == 0
    endpoints = json.loads((Path(environment["ALMANAC_STATE_DIR"]) / "endpoints.json").read_text())
    base = endpoints["airflow_url"].rstrip("/")
    login = {"username": endpoints.get("airflow_username", "admin"), "password": endpoints["airflow_password"]}
    with httpx.Client(base_url=base, timeout=30) as client:
        client.headers["Authorization"] = f"Bearer {client.post('/auth/token', json=login).json()['access_token']}"
        dag = client.get("/api/v2/dags/weather/details").json()
        assert "generation" in dag["doc_md"]
        assert {tag["name"] for tag in dag["tags"]} >= {"almanac", "weather"}
        assert set(dag["params"]) == {"coverage_min", "anew"}
        features = client.get("/api/v2/dags/weather_features/details").json()
        assert "watermarks" in features["doc_md"]
        assert set(features["params"]) == {"full", "since", "until"}
        assert client.get("/api/v2/importErrors").json()["total_entries"] == 0
        runs = client.get("/api/v2/dags/weather/dagRuns", params={"state": "success"}).json()["dag_runs"]
        assert runs
        assert all(run["partition_key"].endswith("Z") for run in runs)
        tasks = client.get(f"/api/v2/dags/weather/dagRuns/{runs[0]['dag_run_id']}/taskInstances").json()
        labels = [t["rendered_map_index"] for t in tasks["task_instances"] if t["task_id"] == "score"]
        assert len(labels) == 2
        assert all(label.startswith("tile r") for label in labels)
        assets = client.get("/api/v2/assets").json()["assets"]
        assert {"almanac://weather/predictions", "almanac://weather/features"} <= {asset["uri"] for asset in assets}
        events = client.get("/api/v2/assets/events").json()["asset_events"]
        assert any(event["extra"].get("generation") for event in events)


def test_a_training_in_airflow_registers_a_challenger_and_says_what_became_of_it(
    demo: subprocess.CompletedProcess[str], environment: dict[str, str]
) -> None:
    assert demo.returncode == 0
    settings = load_settings(state_dir=Path(environment["ALMANAC_STATE_DIR"]))
    registry = Registry(settings.models_dir)
    champion = registry.aliases("weather")["champion"]
    with AirflowApi(settings) as airflow:
        run = airflow.trigger("weather_training", partition_key=None, note="a test")
        *_, state = airflow.follow("weather_training", run, timeout_seconds=COMMAND_SECONDS_MAX)
        tasks = {task.task: task.state for task in airflow.tasks("weather_training", run)}
    assert state == "success"
    assert tasks["train"] == "success"
    found = registry.resolve("weather@challenger")
    said = found.manifest.judged
    assert found.version > champion
    assert said is not None
    assert said.champion == f"weather-v{champion}"
    assert said.against_champion is not None
    assert tasks["promote"] == ("success" if said.passed else "skipped")
    assert registry.aliases("weather")["champion"] == (found.version if said.passed else champion)


def test_a_backfill_from_the_ui_is_archived_and_a_dag_scheduled_on_the_asset_follows_with_its_key(
    demo: subprocess.CompletedProcess[str], environment: dict[str, str]
) -> None:
    """What the UI's form sends; the other DAG is the one that the operator's page shows."""
    assert demo.returncode == 0
    settings = load_settings(state_dir=Path(environment["ALMANAC_STATE_DIR"]))
    hour = floor_hour(utc_now()) - timedelta(hours=7)
    key = hour.strftime(PARTITION_KEY_FORMAT)
    with PostgresStore(settings.need("postgres_url")) as store, AirflowApi(settings) as airflow:
        before = store.pointer("weather")
        asked = {"dag_id": "weather", "from_date": format_time(hour), "to_date": format_time(hour)}
        airflow.call("POST", "/backfills", json={**asked, "max_active_runs": 1, "reprocess_behavior": "none"})

        def followed() -> dict[str, Any] | None:
            runs = airflow.call("GET", "/dags/after_weather/dagRuns", params={"limit": 100})["dag_runs"]
            return next((run for run in runs if (run["partition_key"], run["state"]) == (key, "success")), None)

        run = eventually(followed)
        path = f"/dags/after_weather/dagRuns/{run['dag_run_id']}/taskInstances/tell/xcomEntries/return_value"
        told = airflow.call("GET", path)["value"]
        made = store.generation("weather", told["generation"])
        after = store.pointer("weather")
    assert made is not None
    assert (made.state, made.cutoff) == (State.ARCHIVED, hour)
    assert (told["partition_key"], told["state"]) == (key, "archived")
    assert before is not None
    assert after is not None
    assert after.generation.as_of >= before.generation.as_of


@pytest.mark.parametrize("past", [timedelta(hours=9, minutes=-13), None], ids=["logical date alone", "nothing"])
def test_a_run_triggered_without_a_partition_key_is_followed_by_whoever_is_scheduled_on_its_assets(
    demo: subprocess.CompletedProcess[str], environment: dict[str, str], past: timedelta | None
) -> None:
    """As from the UI's form: with a logical date alone, or with nothing."""
    assert demo.returncode == 0
    settings = load_settings(state_dir=Path(environment["ALMANAC_STATE_DIR"]))
    moment = None if past is None else floor_hour(utc_now()) - past
    with PostgresStore(settings.need("postgres_url")) as store, AirflowApi(settings) as airflow:
        body = {"logical_date": moment and format_time(moment), "conf": {}}
        run = airflow.call("POST", "/dags/weather/dagRuns", json=body)
        assert run["partition_key"] is None
        speaks = moment or parse_time(run["run_after"])
        key = floor_hour(speaks).strftime(PARTITION_KEY_FORMAT)  # the latest tick of an hourly schedule
        began = parse_time(run["queued_at"])

        def successes(dag: str) -> list[dict[str, Any]]:
            runs = airflow.call("GET", f"/dags/{dag}/dagRuns", params={"limit": 100, "order_by": "-run_after"})
            mine = [one for one in runs["dag_runs"] if (one["partition_key"], one["state"]) == (key, "success")]
            return [one for one in mine if parse_time(one["queued_at"]) > began]

        def followed() -> tuple[dict[str, Any], GenerationRecord] | None:
            if not successes("weather_features"):
                return None
            for after in successes("after_weather"):  # a scheduled run may have the same key
                path = f"/dags/after_weather/dagRuns/{after['dag_run_id']}/taskInstances/tell/xcomEntries/return_value"
                told = airflow.call("GET", path)["value"]
                made = store.generation("weather", told["generation"])
                if made is not None and made.run_key == run["dag_run_id"]:
                    return told, made
            return None

        told, made = eventually(followed)
    assert told["partition_key"] == key
    assert abs(made.cutoff - speaks) < timedelta(milliseconds=1)
    assert made.state is (State.ARCHIVED if past else State.CURRENT)


def test_what_is_under_way_stops_between_two_tasks_while_dags_are_paused_and_goes_on_afterwards(
    demo: subprocess.CompletedProcess[str], environment: dict[str, str]
) -> None:
    assert demo.returncode == 0
    settings = load_settings(state_dir=Path(environment["ALMANAC_STATE_DIR"]))
    key = (floor_hour(utc_now()) - timedelta(hours=8)).strftime(PARTITION_KEY_FORMAT)
    with AirflowApi(settings) as airflow:
        dags = sorted(airflow.paused_by_dag([weather.dag_tag]))
        assert dags == ["weather", "weather_features", "weather_integrity", "weather_training"]
        eventually(lambda: not airflow.at_work(dags) or None)
        airflow.set_paused("weather_integrity", True)  # by a person, and so it stays
        under_way = airflow.trigger("weather", partition_key=key, note="a test")
        eventually(lambda: "weather.plan" in airflow.at_work(["weather"]) or None)
        with dags_paused(settings, [weather], print) as paused:
            queued = airflow.trigger("weather", partition_key=key, note="a test")
            paused.check()
            assert airflow.paused_by_dag([weather.dag_tag]) == dict.fromkeys(dags, True)
            assert airflow.at_work(dags) == []
            assert [airflow.run_state("weather", run) for run in (under_way, queued)] == ["running", "queued"]
        assert airflow.paused_by_dag([weather.dag_tag]) == {dag: dag == "weather_integrity" for dag in dags}
        airflow.set_paused("weather_integrity", False)
        for run in (under_way, queued):
            *_, state = airflow.follow("weather", run, timeout_seconds=COMMAND_SECONDS_MAX)
            assert state == "success"
        runs = airflow.call("GET", "/dags/weather_features/dagRuns", params={"limit": 100})["dag_runs"]
        assert "its asset was updated while it was paused" in [run["note"] for run in runs]
        with dags_paused(settings, [weather], print) as paused:
            airflow.set_paused("weather_training", False)
            with pytest.raises(UsageError, match="somebody unpaused weather_training in Airflow meanwhile"):
                paused.check()
        assert airflow.paused_by_dag([weather.dag_tag]) == dict.fromkeys(dags, False)


def test_dags_that_a_killed_process_had_paused_are_unpaused(
    demo: subprocess.CompletedProcess[str], environment: dict[str, str]
) -> None:
    assert demo.returncode == 0
    settings = load_settings(state_dir=Path(environment["ALMANAC_STATE_DIR"]))
    text = (
        "import signal\n"
        "from almanac.airflow_pause import dags_paused\n"
        "from almanac.declarations import pipeline\n"
        "from almanac.settings import settings\n"
        "with dags_paused(settings(), [pipeline('weather')], print):\n"
        "    print('ready', flush=True)\n"
        "    signal.pause()\n"
    )
    with AirflowApi(settings) as airflow:
        one = subprocess.Popen(
            [sys.executable, "-c", text], env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert one.stdout is not None
        while one.stdout.readline().strip() != "ready":
            assert one.poll() is None
        assert all(airflow.paused_by_dag([weather.dag_tag]).values())
        one.kill()
        one.communicate()
        eventually(lambda: not any(airflow.paused_by_dag([weather.dag_tag]).values()) or None)


@pytest.mark.timeout(DEMO_SECONDS_MAX + 60)
def test_everything_the_demonstration_of_lists_claims_holds(
    demo: subprocess.CompletedProcess[str], environment: dict[str, str]
) -> None:
    """The last one: without `--keep` it takes the stack down. Its model is no trained one: that takes long."""
    assert demo.returncode == 0
    register_sums(load_settings(state_dir=Path(environment["ALMANAC_STATE_DIR"])), shop)
    done = demonstrated(environment, "--pipeline", "shop", "--running", "--own", *WITHIN_SHOP)
    held(done, 13)
    assert done.stdout.count("an hour turns within") == len(WITHIN_SHOP)
