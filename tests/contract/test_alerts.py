"""Alert rules, dashboard and scrape configuration name only what exists, and every alert says what to do."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import prometheus_client
import promql_parser as promql
import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from almanac import metrics
from serving_cache.monitor_alerts import LATE, Kind
from serving_cache.stage_times import STAGES
from streaming.incidents import KINDS

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
GRAFANA = ROOT / "deploy" / "grafana" / "provisioning"
DASHBOARD = GRAFANA / "dashboards" / "almanac.json"
SCRAPED = {"job", "instance"}
"""Labels that Prometheus itself adds."""
NOT_OURS = {"up": SCRAPED}
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
DURATION = re.compile(r"\d+[smh]")


def declared() -> dict[str, set[str]]:
    """Every series that exists, with its labels."""
    found: dict[str, set[str]] = dict(NOT_OURS)
    for value in vars(metrics).values():
        if isinstance(value, MetricWrapperBase):
            (family,) = value.describe()
            for suffix in SUFFIXES[family.type]:
                more = {"le"} if suffix == "_bucket" else set()
                found[f"{family.name}{suffix}"] = {*value._labelnames, *more, *SCRAPED}
    for collector in (prometheus_client.PROCESS_COLLECTOR, prometheus_client.PLATFORM_COLLECTOR):
        for family in collector.collect():
            for sample in family.samples:
                found[sample.name] = {*sample.labels, *SCRAPED}
    return found


DECLARED = declared()
METRIC = re.compile(r"\balmanac_\w+")


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return list(json.loads(DASHBOARD.read_text())["panels"])


def expressions() -> Iterator[tuple[str, str]]:
    """Every PromQL expression, with where it stands."""
    for rule in rules():
        yield f"alert {rule['alert']}", rule["expr"]
    for panel in panels():
        for target in panel.get("targets", []):
            yield f"panel {panel['title']}", target["expr"]
    for annotation in json.loads(DASHBOARD.read_text())["annotations"]["list"]:
        yield f"annotation {annotation['name']}", annotation["expr"]


def unknown(expression: str) -> list[str]:
    """What an expression names that does not exist: metrics, and labels of them."""
    tree = promql.parse(expression.replace("$__rate_interval", "5m"))
    wrong: list[str] = []

    def visit(node: Any) -> None:
        if isinstance(node, promql.VectorSelector):
            labels = DECLARED.get(node.name)
            if labels is None:
                wrong.append(f"no metric is named {node.name}")
                return
            wrong.extend(
                f"{node.name} has no label {matcher.name}"
                for matcher in node.matchers.matchers
                if matcher.name not in labels
            )
        if isinstance(node, promql.AggregateExpr) and node.modifier is not None:
            inside = selected(node.expr)
            wrong.extend(f"nothing in {expression} has the label {n}" for n in node.modifier.labels if n not in inside)

    promql.walk(tree, visit)
    return wrong


def selected(tree: Any) -> set[str]:
    """Labels of the metrics below a node."""
    found: set[str] = set()

    def visit(node: Any) -> None:
        if isinstance(node, promql.VectorSelector):
            found.update(DECLARED.get(node.name, ()))

    promql.walk(tree, visit)
    return found


@pytest.mark.parametrize(("where", "expression"), list(expressions()), ids=lambda value: str(value)[:40])
def test_expressions_parse_and_name_only_what_exists(where: str, expression: str) -> None:
    assert unknown(expression) == [], where


def test_the_check_finds_what_does_not_exist() -> None:
    """The parser sees names inside functions, aggregations and on both sides of an operator."""
    assert unknown("sum(rate(almanac_nothing_total[5m])) / sum(rate(almanac_stream_events_total[5m]))")
    assert unknown('almanac_generation_late{entity="17"}')
    assert unknown("sum by (tile) (almanac_partitions)")
    assert unknown("almanac_lookup_requests")  # a counter is read by its name with _total
    assert unknown("almanac_stage_seconds") == ["no metric is named almanac_stage_seconds"]
    assert unknown("sum by (pipeline) (rate(almanac_stream_events_total[5m])) > 0 or absent(up)") == []


def test_no_metric_has_a_label_without_bound() -> None:
    for name, labels in DECLARED.items():
        assert not labels & {"entity", "partition", "generation", "cell_id", "trace", "shard"}, name
        if name.startswith("almanac_"):
            assert labels & {"pipeline", "process"}, name


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_every_alert_says_what_it_means_and_what_to_do(rule: dict[str, Any]) -> None:
    assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
    assert DURATION.fullmatch(rule["for"])
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert set(rule["annotations"]) == {"summary", "description", "runbook"}
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert anchor == rule["alert"].lower()
    sections = sections_of(ROOT / page)
    assert anchor in sections, f"{page} has no section {rule['alert']}"
    assert "**Means**" in sections[anchor]
    assert "**Do**" in sections[anchor]
    known = selected(promql.parse(rule["expr"]))
    for used in re.findall(r"\$labels\.(\w+)", str(rule["annotations"])):
        assert used in known, f"{rule['alert']} shows the label {used}, which its expression lacks"


def sections_of(page: Path) -> dict[str, str]:
    """Heading, as its anchor, to the text below it."""
    parts = re.split(r"^#{2,4} (.+)$", page.read_text(), flags=re.M)
    return {
        re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-"): text
        for title, text in zip(parts[1::2], parts[2::2], strict=True)
    }


def test_alerts_have_names_of_their_own_and_no_section_is_left_over() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    described = {name for name in sections_of(ROOT / "docs" / "operations.md") if name.startswith("almanac")}
    assert described == {name.lower() for name in names}


def test_what_alerts_are_about_is_on_the_dashboard() -> None:
    shown = {name for panel in panels() for t in panel.get("targets", []) for name in METRIC.findall(t["expr"])}
    watched = {name for rule in rules() for name in METRIC.findall(rule["expr"])}
    assert "almanac_generation_unusual" in watched
    assert not watched - shown


@pytest.mark.parametrize("kind", [LATE, *KINDS], ids=lambda kind: kind.name)
def test_an_alert_that_a_process_raises_itself_has_the_rules_name_and_section(kind: Kind) -> None:
    assert {kind.runbook} == {rule["annotations"]["runbook"] for rule in rules() if rule["alert"] == kind.name}


def test_prometheus_scrapes_every_process_that_shows_metrics() -> None:
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    assert set(config) == {"global", "rule_files", "scrape_configs"}
    for name in config["rule_files"]:
        assert (PROMETHEUS / name).is_file()
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in config["scrape_configs"]}
    assert set(targets) == {"lookup", "stream", "reconciler", "monitor"}
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    for target in (target for found in targets.values() for target in found):
        service, _, port = target.partition(":")
        environment = compose["services"][service]["environment"]
        setting = "ALMANAC_LOOKUP_PORT" if service.startswith("lookup") else "ALMANAC_METRICS_PORT"
        assert str(environment[setting]) == port, target
        assert "metrics" in compose["services"][service]["networks"], f"{service} is not on Prometheus's network"


def test_the_dashboard_has_what_grafana_needs() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    assert dashboard["uid"] == "almanac"
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    (datasource,) = yaml.safe_load((GRAFANA / "datasources" / "prometheus.yml").read_text())["datasources"]
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, f"{panel['title']} lies over another panel"
        taken |= cells
        if panel["type"] == "row":
            continue
        assert panel["datasource"] == {"type": "prometheus", "uid": datasource["uid"]}
        assert panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        references = [target["refId"] for target in panel["targets"]]
        assert references
        assert len(set(references)) == len(references)
    (provider,) = yaml.safe_load((GRAFANA / "dashboards" / "dashboards.yml").read_text())["providers"]
    assert provider["options"]["path"] == "/etc/grafana/provisioning/dashboards"


def test_the_stages_are_those_that_the_jobs_record() -> None:
    recorded: set[str] = set()
    for path in [*(ROOT / "jobs").glob("*.py"), *(ROOT / "dags").glob("*.py")]:
        recorded.update(re.findall(r"\bstage\(\s*\"(\w+)\"", path.read_text()))
    assert recorded == set(STAGES)
