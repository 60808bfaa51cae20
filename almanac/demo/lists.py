"""The stages of the demonstration about lists: nightly ones, an unknown entity's, and what a purchase changes."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import psycopg
from psycopg import sql

from almanac.clock import format_time, parse_time, utc_now
from almanac.demo import stages
from almanac.demo.report import DemoFailed
from almanac.demo.world import World, brief
from almanac.settings import PROJECT_ROOT

DECLARED = PROJECT_ROOT / "pipelines" / "variants" / "shop_leaving_out.py"
"""What is served: what a customer has just bought is left out, so that the change is plain to see."""
PLAIN = PROJECT_ROOT / "pipelines" / "shop.py"
"""What is trained and measured: customers buy again what they bought, and lists without that hold less of it."""
NEW_SECONDS_MAX = 5.0
ANSWER_SECONDS_MAX = 120.0
AGE_TOLERANCE_SECONDS = 2.0
STRANGER = "nobody has seen me"
KEPT = 30
"""Items that a list keeps, of which ten are answered."""
CHEAP = 3.0


def show(world: World) -> None:
    """The stages, in order."""
    report = world.report
    if world.data is not None:
        report.stage("almanac source shop: which rows of the file can be believed")
        gates(world)
    stages.anew(world)
    if not world.running:
        report.stage("almanac train shop: LambdaRank on what customers bought, converted to ONNX")
        replace(world, declared=PLAIN).run("train", "shop", show=True)  # what is left out is nothing to learn from
    report.stage("Airflow precomputes a list for every customer")
    stages.ran(world, "shop")
    stages.features_online(world)
    report.stage("the lookup service answers with lists")
    # A run that publishes ranks lists anew, while one customer's is looked at from several sides.
    with world.stillness("until the parts have returned, so that what changes is by purchases and outages alone"):
        customer = nightly(world)
        wishes(world, customer)
        stranger(world)
        report.stage("a purchase on Kafka ranks its customer's list again")
        newcomer(world)  # the worker's first event: it reads the items once
        purchase(world, customer)
        unbelievable(world, customer)
        report.stage("scheduler and stream are stopped, then Redis")
        outage(world, customer)
    if world.data is not None:
        report.stage("lists are measured on what was bought in the last month, which the model has not seen")
        measured(world)


def gates(world: World) -> None:
    """Every row of the file is a line, or set aside with its reason; a file that cannot be used ends it here."""
    found = world.json("source", "shop")
    aside = {reason: count for reason, count in found["set_aside"].items() if count}
    world.report.claim(
        found["rows"] == found["lines"] + sum(aside.values()),
        "every row of the file is a line, or set aside with its reason",
        f"{found['rows']:,} rows: {found['lines']:,} lines, "
        + ", ".join(f"{count:,} {reason}" for reason, count in aside.items()),
    )


def nightly(world: World) -> str:
    """Some customer of the generation, and the list."""
    with psycopg.connect(world.settings.need("postgres_url")) as people:
        view = sql.Identifier(f"{world.pipeline}_current")
        found = people.execute(
            sql.SQL(
                "SELECT customer_id, count(*) OVER () FROM {} ORDER BY cardinality(items) DESC, customer_id"
            ).format(view)
        ).fetchone()
    if found is None:
        raise DemoFailed("the generation has no lists")
    customer, customers = str(found[0]), int(found[1])
    answer = world.wait_for(
        "a list of the generation",
        lambda: given if (given := world.answer(customer))["source"] == "batch" else None,
        seconds=ANSWER_SECONDS_MAX,
    )
    world.report.claim(
        len(_items(answer)) == 10 and _falling(answer),
        "a customer has ten items, best first",
        f"one of {customers:,} customers, {customer}: {brief(answer)}",
    )
    return customer


def wishes(world: World, customer: str) -> None:
    """What of a list a caller may want, and a wish that cannot be met."""
    kept = world.answer(customer, limit=KEPT)["outputs"]["score"]["items"]
    whole = [found["item"] for found in kept]
    three = _items(world.answer(customer, limit=3))
    first = '"' + whole[0].replace('"', '""') + '"'
    without = _items(world.answer(customer, exclude=first, limit=9))
    cheap = _items(world.answer(customer, filter=f"price<{CHEAP:g}"))
    below = [found["item"] for found in kept if found["attributes"]["price"] < CHEAP]
    world.report.claim(
        three == whole[:3] and without == whole[1:10] and cheap == below[:10],
        "limit, exclude and filter choose from it",
        f"3 items; 9 without {whole[0]}; {len(cheap)} below {CHEAP:g}",
    )
    refused = world.ask(f"/v1/{world.pipeline}/entities/{customer}", filter="colour=red")
    world.report.claim(
        refused.status_code == 400 and "price" in refused.json()["detail"],
        "a filter that was not declared is refused, and names those that were",
        f"{refused.status_code}: {refused.json()['detail']}",
    )


def stranger(world: World) -> None:
    """Somebody whom nobody has seen gets what is popular, said to be that."""
    answer = world.answer(STRANGER)
    world.report.claim(
        answer["source"] == "default" and len(_items(answer)) == 10 and answer["as_of"] is None,
        "a customer nobody has seen gets the declared default, said to be that",
        f"source {answer['source']}: {answer['reason']}",
    )


def purchase(world: World, customer: str) -> None:
    """The best items are bought: within seconds there is another list, without them."""
    before = world.answer(customer)
    bought = _items(before)[:2]
    seconds, answer = _bought(world, customer, bought)
    world.report.claim(
        seconds <= NEW_SECONDS_MAX and _items(answer) != _items(before),
        "a purchase ranks the list again within five seconds",
        f"after {seconds:.1f} s: {brief(answer)}",
    )
    world.report.claim(
        not set(bought) & set(_items(answer)),
        "and what was just bought is left out, as the declaration says",
        f"bought {', '.join(bought)}; now first: {', '.join(_items(answer)[:2])}",
    )


def newcomer(world: World) -> None:
    """A customer's first purchase gives the first list of the customer's own."""
    seconds, answer = _bought(world, "a new customer", _items(world.answer(STRANGER))[:1])
    world.report.claim(
        answer["source"] == "stream" and bool(_items(answer)),
        "a new customer's first purchase gives a list of their own",
        f"after {seconds:.1f} s: {brief(answer)}",
    )


def unbelievable(world: World, customer: str) -> None:
    """A price that is no number, and a return of what was never bought, are kept where a person finds them."""
    events = [
        _event(customer, ["X"]).replace('"price": 1.5', '"price": NaN'),
        json.dumps({**json.loads(_event(customer, ["NEVER BOUGHT"])), "lines": [_line("NEVER BOUGHT", -1)]}),
    ]
    world.run("publish", "shop", "--file", "-", stdin="\n".join(events) + "\n")
    reasons = world.wait_for(
        "two dead letters",
        lambda: found if len(found := [x["reason"] for x in world.json("dead-letters", "shop")]) >= 2 else None,
        seconds=ANSWER_SECONDS_MAX,
    )
    world.report.claim(
        {"not-finite", "return-without-purchase"} <= set(reasons),
        "what cannot be believed is kept, with why",
        ", ".join(sorted(reasons)),
    )


def outage(world: World, customer: str) -> None:
    """With the pipeline down lists are still answered, with their true age; without Redis, too."""
    report = world.report
    world.run("stop", "airflow-scheduler", "stream")
    first = world.answer(customer)
    time.sleep(1.0)
    answer = world.answer(customer)
    age = (utc_now() - parse_time(answer["as_of"])).total_seconds()
    report.claim(
        _items(answer) == _items(first)
        and abs(answer["age_seconds"] - age) <= AGE_TOLERANCE_SECONDS
        and answer["age_seconds"] > first["age_seconds"],
        "with the pipeline down the list is still answered, with its true age",
        brief(answer),
    )
    world.run("stop", "redis")
    without = world.wait_for(
        "an answer without Redis",
        lambda: found if (found := world.answer(customer))["place"] == "postgres" else None,
        seconds=ANSWER_SECONDS_MAX,
    )
    report.claim(
        _items(without) == _items(answer) and bool(without["reason"]),
        "with Redis stopped the same list comes from Postgres, and says so",
        f"place {without['place']}: {without['reason']}",
    )
    world.run("start", "redis", "stream", *(["airflow-scheduler"] if world.keep else []))
    back = world.wait_for(
        "an answer from Redis",
        lambda: found if (found := world.answer(customer))["place"] == "redis" else None,
        seconds=ANSWER_SECONDS_MAX,
    )
    report.claim(_items(back) == _items(answer), "when they return it comes from Redis again", brief(back))


def measured(world: World) -> None:
    """Of each basket of the last month the list as of just before it, beside that of the night before."""
    lists = replace(world, declared=PLAIN).json("evaluate", "shop")["lists"]
    for way, found in lists.items():
        beside = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in found["recall_baselines"].items())
        world.report.say(
            f"{way.replace('_', ' ')}: recall at 10 {found['recall']:.3f} ({beside}), {found['rows']:,} lists"
        )
    streamed, nights = lists["each_basket"], lists["each_basket_by_last_night"]
    world.report.claim(
        streamed["recall"] > nights["recall"],
        "streamed lists hold more of what is bought next than the nightly ones",
        f"recall at 10 {streamed['recall']:.4f} beside {nights['recall']:.4f} over {streamed['rows']:,} baskets",
    )
    best = max(lists["nightly"]["recall_baselines"].values())
    world.report.claim(
        lists["nightly"]["recall"] > best,
        "the model's lists hold more than those without a model",
        f"recall at 10 {lists['nightly']['recall']:.4f} beside {best:.4f}",
    )


def _bought(world: World, customer: str, items: list[str]) -> tuple[float, dict[str, Any]]:
    """Publish a purchase; the seconds until a list of the stream answers, and that answer."""
    event = _event(customer, items)
    world.run("publish", "shop", "--file", "-", stdin=event + "\n")
    sent, moment = time.monotonic(), parse_time(json.loads(event)["observed_at"])
    answer = world.wait_for(
        f"a list of the stream for {customer}",
        lambda: (
            found
            if (found := world.answer(customer))["source"] == "stream" and parse_time(found["as_of"]) >= moment
            else None
        ),
        seconds=ANSWER_SECONDS_MAX,
    )
    return time.monotonic() - sent, answer


def _event(customer: str, items: list[str]) -> str:
    lines = [_line(item, 2) for item in items]
    return json.dumps({"customer_id": customer, "observed_at": format_time(utc_now()), "lines": lines})


def _line(item: str, quantity: int) -> dict[str, Any]:
    return {"item_id": item, "quantity": quantity, "price": 1.5}


def _items(answer: dict[str, Any]) -> list[str]:
    return [found["item"] for found in answer["outputs"]["score"]["items"]]


def _falling(answer: dict[str, Any]) -> bool:
    scores = [found["score"] for found in answer["outputs"]["score"]["items"]]
    return scores == sorted(scores, reverse=True)
