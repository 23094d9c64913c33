"""The Grafana dashboard: what Grafana takes, and queries that a real run answers."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import promql_parser
import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from jobs.metrics import COUNTERS, GAUGES, UNIT_SECONDS
from tests import prometheus
from tests.jobs_harness import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from prometheus_client.samples import Sample

    from tests.prometheus import Prometheus
    from tests.watched import Watched

DASHBOARD: dict[str, Any] = json.loads((ROOT / "cluster/grafana-dashboard.json").read_text("utf-8"))
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
VARIABLES = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
GRID_COLUMNS = 24
HISTOGRAM = {f"{UNIT_SECONDS}_{part}" for part in ("bucket", "sum", "count")}
COUNTED = {f"ray_{name}" for name in {*COUNTERS, *HISTOGRAM}}
OURS = COUNTED | {f"ray_{name}" for name in GAUGES}


def in_panels() -> list[Any]:
    return [pytest.param(panel, id=f"{panel['id']}-{panel['title']}") for panel in PANELS]


def expression_of(target: dict[str, Any], *, run: str) -> str:
    """A query as Grafana sends it when this run is chosen."""
    window = VARIABLES["window"]["current"]["value"]
    text: str = target["expr"].replace("$run", run).replace("$window", window)
    return text


def nodes_of(expression: str) -> list[Any]:
    """A parsed query and all that it is made of; raises where it is none."""
    nodes: list[Any] = []
    promql_parser.walk(promql_parser.parse(expression), pre_visit=nodes.append)
    return nodes


def selectors_of(expression: str) -> list[Any]:
    return [node for node in nodes_of(expression) if type(node).__name__ == "VectorSelector"]


# What Grafana takes


def missing_from(taken: Any, given: Any, path: str = "") -> Iterator[str]:  # noqa: ANN401 - JSON
    """Where `given` holds something that `taken` does not."""
    if isinstance(given, dict) and isinstance(taken, dict):
        for name, value in given.items():
            yield from missing_from(taken.get(name), value, f"{path}.{name}")
    elif isinstance(given, list) and isinstance(taken, list) and len(given) == len(taken):
        for index, value in enumerate(given):
            yield from missing_from(taken[index], value, f"{path}.{index}")
    elif taken != given:
        yield f"{path}: {given!r} became {taken!r}"


def taken_by_grafana(dashboard: dict[str, Any]) -> Any:  # noqa: ANN401 - JSON
    """What is left of a dashboard in Grafana's own model of one; fields it lacks are gone."""
    register_default_plugins()
    return json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard)))


def test_every_field_is_one_that_grafana_knows() -> None:
    """Grafana ignores what is misspelled, without a word."""
    assert list(missing_from(taken_by_grafana(DASHBOARD), DASHBOARD)) == []
    wrong = json.loads(json.dumps(DASHBOARD))
    wrong["panels"][0]["targets"][0]["legend"] = "{{run}}"
    wrong["panels"][0]["fieldConfig"]["defaults"]["units"] = "s"
    assert len(list(missing_from(taken_by_grafana(wrong), wrong))) == 2


def test_it_is_bound_to_no_server_and_no_run() -> None:
    """It can be imported anywhere: Grafana gives the number, a person picks data source and run."""
    assert "id" not in DASHBOARD
    assert DASHBOARD["uid"] == "scar-curate"
    assert {name: variable["type"] for name, variable in VARIABLES.items()} == {
        "datasource": "datasource",
        "run": "query",
        "window": "interval",
    }
    source = {"type": "prometheus", "uid": "${datasource}"}
    assert VARIABLES["run"]["datasource"] == source
    for panel in PANELS:
        assert panel["datasource"] == source
        assert all(target["datasource"] == source for target in panel["targets"])


def test_no_panel_lies_over_another_or_beyond_the_grid() -> None:
    """Twenty-four columns, each place taken once."""
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        place = panel["gridPos"]
        assert 0 <= place["x"] < place["x"] + place["w"] <= GRID_COLUMNS, panel["title"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert len(cells) == place["w"] * place["h"] > 0
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)


@pytest.mark.parametrize("panel", in_panels())
def test_every_panel_says_what_it_shows(panel: dict[str, Any]) -> None:
    """A title, a sentence, a unit, and a name for each line."""
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    targets = panel["targets"]
    assert targets
    assert len({target["refId"] for target in targets}) == len(targets)
    assert all(target["expr"] and target["legendFormat"] for target in targets)


# Queries, as they are written


@pytest.mark.parametrize("panel", in_panels())
def test_every_query_is_of_metrics_there_are_and_rates_are_of_counters(
    panel: dict[str, Any],
) -> None:
    """The rate of a gauge is a number, too, and means nothing."""
    for target in panel["targets"]:
        expression = expression_of(target, run="a")
        assert "$" not in expression
        nodes = nodes_of(expression)
        selectors = selectors_of(expression)
        assert selectors
        assert {s.name for s in selectors if s.name.startswith("ray_scar_")} <= OURS
        rated = [n.vector_selector for n in nodes if type(n).__name__ == "MatrixSelector"]
        calls = {str(n.func.name) for n in nodes if type(n).__name__ == "Call"}
        assert calls <= {"rate", "histogram_quantile"}
        assert {selector.name for selector in rated} <= COUNTED
        assert all("run=~" in str(s) for s in selectors if s.name in OURS), expression


def test_every_metric_of_ours_is_shown() -> None:
    """What nobody looks at need not be counted."""
    shown = {
        selector.name
        for panel in PANELS
        for target in panel["targets"]
        for selector in selectors_of(expression_of(target, run="a"))
    }
    of_histogram = {f"ray_{name}" for name in HISTOGRAM}
    assert OURS - of_histogram <= shown
    assert of_histogram & shown


# Queries, and what a real run tells


def matches(selector: promql_parser.VectorSelector, sample: Sample) -> bool:
    """Whether a selector takes a series."""
    for matcher in selector.matchers.matchers:
        kind, value = str(matcher.op).removeprefix("MatchOp."), sample.labels.get(matcher.name, "")
        is_exact = kind in {"Equal", "NotEqual"}
        same = value == matcher.value if is_exact else re.fullmatch(matcher.value, value)
        if bool(same) == kind.startswith("Not"):
            return False
    return bool(selector.name == sample.name)


@pytest.mark.parametrize("panel", in_panels())
def test_every_series_that_a_panel_asks_for_was_there(
    panel: dict[str, Any], watched: Watched
) -> None:
    """Name by name and label by label, in the scrape of a real run."""
    for target in panel["targets"]:
        expression = expression_of(target, run=watched.second.name)
        for selector in selectors_of(expression):
            found = [sample for sample in watched.samples if matches(selector, sample)]
            assert found, f"{selector}: no such series"
        for labels in re.findall(r"(?:by|on) \(([^)]*)\)", expression):
            names = {name.strip() for name in labels.split(",")}
            assert names <= {name for sample in watched.samples for name in sample.labels}
        wanted = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
        assert wanted <= set(re.findall(r"\w+", expression))


@pytest.fixture(scope="module")
def server(watched: Watched, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has scraped both nights, each as if it had taken twenty minutes."""
    if prometheus.MISSING:
        pytest.skip(f"not installed: {', '.join(prometheus.MISSING)} (Debian: prometheus)")
    asked = {
        selector.name
        for panel in PANELS
        for target in panel["targets"]
        for selector in selectors_of(expression_of(target, run="a"))
    }
    samples = [sample for sample in watched.samples if sample.name in asked]

    def first(sample: Sample) -> float:
        if sample.name in COUNTED:
            return 0.0
        done = watched.done(sample.labels.get("run", ""))
        return {"ray_scar_rows_left": done.rows, "ray_scar_units_left": done.units}.get(
            sample.name, sample.value
        )

    text = prometheus.history(samples, first)
    with prometheus.prometheus(tmp_path_factory.mktemp("prometheus"), text) as running:
        yield running


def shown(server: Prometheus, title: str, *, kind: str, run: Path) -> dict[str, float]:
    """What a panel shows of a run when half of it is done, by the names of its lines."""
    (panel,) = [p for p in PANELS if (p["title"], p["type"]) == (title, kind)]
    lines = {}
    for target in panel["targets"]:
        expression = expression_of(target, run=run.name)
        for labels, value in server.query(expression, seconds=prometheus.SECONDS / 2):
            name = target["legendFormat"]
            for label, text in labels.items():
                name = name.replace("{{" + label + "}}", text)
            lines[name.removeprefix(run.name).strip()] = value
    return lines


def test_panels_show_what_the_run_did(server: Prometheus, watched: Watched) -> None:
    """Rates, shares and forecasts by Prometheus itself, against plain arithmetic."""
    run = watched.second
    now, done = watched.values(run), watched.done(run.name)
    total = {name: value for (name, reason), value in now.items() if not reason}
    quarantined = {reason: rows for (name, reason), rows in now.items() if reason}
    wait = total["scar_actor_wait_seconds_total"]
    seconds = prometheus.SECONDS

    def a_second(name: str) -> dict[str, float]:
        return {"": total[name] / seconds}

    waiting = wait / (wait + total["scar_actor_work_seconds_total"])
    padding = total["scar_computed_tokens_total"] / total["scar_encoded_tokens_total"]
    rescored = total["scar_rows_rescored_total"] / 2
    for title, kind, wanted in (
        ("Rows per second", "stat", a_second("scar_rows_scored_total")),
        ("Rows per second", "timeseries", a_second("scar_rows_scored_total")),
        ("Tokens per second", "timeseries", a_second("scar_tokens_total")),
        ("Time left", "stat", {"": seconds / 2}),
        ("Time left", "timeseries", {"": seconds / 2}),
        ("Units left", "stat", {"": done.units / 2}),
        ("Units done and left", "timeseries", {"done": done.units / 2, "left": done.units / 2}),
        ("Share of time that actors wait", "timeseries", {"": waiting}),
        ("Padding: tokens computed per real token", "timeseries", {"": padding}),
        ("Rows quarantined", "stat", {"": sum(quarantined.values()) / 2}),
        (
            "Quarantined rows by reason",
            "timeseries",
            {reason: rows / 2 for reason, rows in quarantined.items()},
        ),
        ("Rows scored again in fp32", "timeseries", {"": rescored}),
        ("Rows selected", "stat", {"": total["scar_rows_selected"]}),
        (
            "Drift of the new rows",
            "stat",
            {"": total["scar_drift_psi"]},
        ),
    ):
        assert shown(server, title, kind=kind, run=run) == pytest.approx(wanted), title
    unit = shown(server, "Seconds per unit", kind="timeseries", run=run)
    assert 0 < unit["median"] <= unit["95 %"]


def test_a_run_that_is_over_has_no_time_left(server: Prometheus, watched: Watched) -> None:
    """At the end all is done; the forecast ends with it."""
    (panel,) = [p for p in PANELS if (p["title"], p["type"]) == ("Time left", "stat")]
    expression = expression_of(panel["targets"][0], run=watched.second.name)
    ((_, value),) = server.query(expression, seconds=prometheus.SECONDS)
    assert value == pytest.approx(0)


def test_the_run_to_choose_is_the_one_that_was_watched_last(
    server: Prometheus, watched: Watched
) -> None:
    """The list of the variable `run`, asked for as Grafana asks."""
    listed = re.fullmatch(r"label_values\((.*), run\)", VARIABLES["run"]["query"]["query"])
    assert listed
    runs = server.ask("label/run/values", **{"match[]": listed[1]})
    assert max(runs) == watched.second.name
