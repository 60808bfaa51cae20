"""The stages of the demonstration, in order. Each makes its claims; none assumes an earlier one held."""

from __future__ import annotations

import json
import math
import time
from typing import Any

from almanac.airflow_api import AirflowApi
from almanac.clock import PARTITION_KEY_FORMAT, floor_hour, format_time, parse_time, utc_now
from almanac.declarations import pipeline as declared
from almanac.demo.report import DemoFailed
from almanac.demo.world import DAG_PARSED_SECONDS, World, brief

RUN_TIMEOUT_SECONDS = 600.0
FEATURES_SECONDS = 300.0
EVENT_SECONDS_MAX = 5.0
SETTLE_SECONDS = 30.0
RETURN_SECONDS = 180.0
"""Everything starts at once then: on a busy machine that takes minutes."""
FRESH_MARGIN_SECONDS = 8
ATTEMPTS_MAX = 3
"""How often answers are asked for again because a generation was published between two requests."""
AGE_TOLERANCE_SECONDS = 2.0
WARMER_KELVIN = 4.0
MALFORMED = '{"cell_id": "not a cell", "t2m":'


def anew(world: World) -> None:
    """An empty stack, all parts of it healthy; nothing where the one that runs is to be used."""
    if world.running:
        return
    world.report.stage("almanac down --purge, almanac up: Postgres, Redis, Kafka, Airflow, stream worker, lookup")
    world.run("down", "--purge")
    world.run("up", "--detach", show=True)


def ran(world: World, pipeline: str) -> None:
    """Trigger a DAG through Airflow's API and follow it to its end.

    Raises:
        DemoFailed: the run failed.
    """
    report = world.report
    key = floor_hour(utc_now()).strftime(PARTITION_KEY_FORMAT)
    with AirflowApi(world.settings) as airflow:
        world.wait_for("Airflow parsing the DAG", lambda: airflow.has_dag(pipeline) or None, seconds=DAG_PARSED_SECONDS)
        run = airflow.trigger(pipeline, partition_key=key, note="make demo")
        report.say(f"triggered {run} for {key} through {world.settings.airflow_url}")
        final = "unknown"
        for step in airflow.follow(pipeline, run, timeout_seconds=RUN_TIMEOUT_SECONDS):
            if isinstance(step, str):
                final = step
            else:
                report.say(f"{step.state or '?':>15}  {step.title}")
        tasks = world.wait_for("the tasks of the run", lambda: airflow.tasks(pipeline, run), seconds=DAG_PARSED_SECONDS)
        shards = [task for task in tasks if task.task == "score"]
    if not report.claim(final == "success", "Airflow ran the batch", f"run {final}, {len(shards)} mapped shards"):
        raise DemoFailed(
            "the batch run failed: open its failed task in the Airflow UI (make demo KEEP=1 leaves it running)"
        )


def batch(world: World) -> int:
    """Have Airflow precompute the grid, and return the number of a generation that answers for every cell.

    A scheduled run may publish a later generation at any moment: then that one answers, for every cell.
    """
    report = world.report
    cells = declared("weather").partitions.cells  # type: ignore[union-attr]
    ran(world, "weather")
    current = next((g for g in world.json("generations", "weather") if g["state"] == "current"), None)
    if current is None:
        raise DemoFailed("no generation is current after a successful run")
    answers = _settled_answers(world, int(current["generation"]))
    generation = max(int(answer["generation"]) for answer in answers.values())
    whole = [a for a in answers.values() if int(a["generation"]) == generation and _complete(a)]
    report.claim(
        len(whole) == cells,
        "the generation covers every cell",
        f"generation {generation}, epoch {whole[0]['epoch'] if whole else '?'}: {len(whole)} of {cells} cells answered "
        "from it",
    )
    return generation


def features_online(world: World) -> None:
    """Airflow brings the features of the batch run into the online store, in a DAG of their own."""
    dag = f"{world.pipeline}_features"
    with AirflowApi(world.settings) as airflow:
        runs = world.wait_for(
            f"a run of {dag} that brings the features online",
            lambda: airflow.call("GET", f"/dags/{dag}/dagRuns", params={"state": "success"})["dag_runs"] or None,
            seconds=FEATURES_SECONDS,
        )
    world.report.claim(True, "Airflow brought the features online", f"{dag}: {runs[-1]['dag_run_id']}")


def _settled_answers(world: World, generation: int) -> dict[int, dict[str, Any]]:
    """Answers for every cell, all from this generation or all from a later one.

    The cells are asked for in several requests; where a generation is published in between, they are asked again.
    """
    world.wait_for(
        f"lookups from generation {generation}",
        lambda: True if int(world.answer(0)["generation"]) >= generation else None,
        seconds=SETTLE_SECONDS,
    )
    for _attempt in range(ATTEMPTS_MAX):
        answers = world.answers(declared("weather").partitions.cells)  # type: ignore[union-attr]
        if len({answer["epoch"] for answer in answers.values()}) == 1:
            break
    return answers


def _values(answer: dict[str, Any]) -> dict[str, float | None]:
    return {name: output["value"] for name, output in answer["outputs"].items()}


def _changed(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether an answer says another number; one that is left out because its moment has passed is no change."""
    return any(
        output["value"] != before["outputs"][name]["value"]
        for name, output in after["outputs"].items()
        if not (output["verdict"] == "expired" and output["value"] is None)
    )


def _complete(answer: dict[str, Any]) -> bool:
    """Every output has a number, except those whose moment has passed."""
    return all(
        isinstance(output["value"], float) or output["verdict"] == "expired" for output in answer["outputs"].values()
    )


def fresh_lookup(world: World) -> int:
    """One lookup of a point; returns its cell."""
    found = world.ask("/v1/weather/point", lat=51.5, lon=-0.1)
    if found.status_code != 200:
        raise DemoFailed(f"lookup of a point was refused ({found.status_code}): {found.text[:300]}")
    answer = found.json()
    world.report.claim(answer["verdict"] == "fresh", "a lookup is fresh", brief(answer))
    return int(answer["entity"])


def _event(cell: int, value: float) -> dict[str, Any]:
    return {"cell_id": cell, "observed_at": format_time(utc_now()), "t2m": round(value, 3)}


def event_changes_one_cell(world: World, cell: int) -> None:
    """An event warmer than the forecast changes its cell's answer and no other's."""
    cells = declared("weather").partitions.cells  # type: ignore[union-attr]
    for _attempt in range(ATTEMPTS_MAX):
        before = world.answers(cells)
        known = next(v for v in _values(before[cell]).values() if v is not None)
        event = _event(cell, known + WARMER_KELVIN)
        world.run("publish", "weather", "--file", "-", stdin=json.dumps(event) + "\n")
        sent = time.monotonic()
        answer = world.wait_for(
            f"a stream answer for cell {cell}",
            lambda: found if (found := world.answer(cell))["source"] == "stream" else None,
            seconds=SETTLE_SECONDS,
        )
        seconds = time.monotonic() - sent
        after = world.answers(cells)
        if after[cell]["epoch"] == before[cell]["epoch"]:
            break  # otherwise the lookup has only now followed to a generation published before: compare again
    world.report.claim(
        seconds <= EVENT_SECONDS_MAX and answer["source"] == "stream" and _changed(before[cell], answer),
        "an event changes its cell within five seconds",
        f"cell {cell} after {seconds:.1f} s: {brief(answer)}",
    )
    others = [other for other in before if other != cell and _changed(before[other], after[other])]
    world.report.claim(not others, "and no other cell's", f"{len(before) - 1 - len(others)} others unchanged")


def malformed_event(world: World) -> None:
    """A malformed event ends in the dead-letter topic, and the worker goes on."""
    world.run("publish", "weather", "--file", "-", stdin=MALFORMED + "\n")
    letter = world.wait_for(
        "the dead letter",
        lambda: next((found for found in world.json("dead-letters", "weather") if found["raw"] == MALFORMED), None),
        seconds=SETTLE_SECONDS,
    )
    world.report.claim(
        True, "a malformed event is in the dead-letter topic", f"{letter['reason']}: {letter['message']}"
    )


def outage(world: World, cell: int) -> None:
    """Scheduler and stream stopped: answers turn stale and say so; Redis stopped: they still come."""
    report = world.report
    quiet = (cell + 1) % declared("weather").partitions.cells  # type: ignore[union-attr]
    world.run("stop", "airflow-scheduler", "stream")
    fresh_for = math.ceil(world.answer(quiet)["age_seconds"]) + FRESH_MARGIN_SECONDS
    world.run("restart", "lookup", "--set", f"FRESH_FOR_SECONDS={fresh_for}")
    report.say(f"stopped airflow-scheduler and stream; ALMANAC_FRESH_FOR_SECONDS={fresh_for} for the lookup")
    stale = world.wait_for(
        "a stale answer",
        lambda: found if (found := world.answer(quiet))["verdict"] == "stale" else None,
        seconds=SETTLE_SECONDS + FRESH_MARGIN_SECONDS,
    )
    true_age = (utc_now() - parse_time(stale["as_of"])).total_seconds()
    report.claim(
        abs(stale["age_seconds"] - true_age) <= AGE_TOLERANCE_SECONDS and stale["age_seconds"] > fresh_for,
        "with scheduler and stream stopped the answer is stale with its true age",
        f"{brief(stale)} (true age {true_age:.0f} s)",
    )
    world.run("stop", "redis")
    answer = world.wait_for(
        "an answer without Redis",
        lambda: found if (found := world.answer(quiet))["place"] == "postgres" else None,
        seconds=SETTLE_SECONDS,
    )
    report.claim(
        answer["place"] == "postgres" and bool(answer["reason"]) and _complete(answer),
        "with Redis stopped lookups still answer and say from where",
        f"place {answer['place']}: {answer['reason']}",
    )
    limit = max(1, int(answer["age_seconds"]) - 1)
    refusal = world.ask(f"/v1/weather/entities/{quiet}", max_stale=limit)
    body = refusal.json()
    report.claim(
        refusal.status_code == 503 and "outputs" not in body and '"value"' not in refusal.text,
        "with max_stale below the age there is a 503 and no number",
        f"max_stale {limit} s: {refusal.status_code} {body.get('title')}: {body.get('detail')}",
    )


def corrections_again(world: World, cell: int) -> None:
    """Everything returns: an event is answered, fresh."""
    world.run("start", "redis", "stream", "airflow-scheduler")
    world.run(
        "restart", "lookup"
    )  # with the declared time for which answers are fresh: the event's must not turn stale
    event = _event(cell, 285.0)
    world.run("publish", "weather", "--file", "-", stdin=json.dumps(event) + "\n")
    streamed = world.wait_for(
        "a fresh answer from the stream",
        lambda: (
            found
            if (found := world.answer(cell))["verdict"] == "fresh"
            and parse_time(found["as_of"]) >= parse_time(event["observed_at"])
            else None
        ),
        seconds=RETURN_SECONDS,
    )
    world.report.claim(
        streamed["source"] == "stream", "after everything returns the stream answers fresh", brief(streamed)
    )


def generations_again(world: World, cell: int, before: int) -> None:
    """The schedule goes on: a run makes a generation, newer than the one of before, and it answers."""
    generation = batch(world)
    fresh = world.wait_for(
        "a fresh answer from Redis",
        lambda: found if (found := world.answer(cell + 1))["place"] == "redis" else None,
        seconds=SETTLE_SECONDS,
    )
    world.report.claim(
        fresh["verdict"] == "fresh" and int(fresh["generation"]) >= generation > before,
        "after everything returns a new generation answers fresh",
        brief(fresh),
    )
