"""What every dashboard has: its variables, its links to the others, and rows of panels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import dashboard as model

from tapeline_grafana.panels import DATASOURCE, Panel

_TAG = "tapeline"


@dataclass(frozen=True, slots=True)
class Choice:
    """A variable: the values of a label of a metric, of which people choose some, or all."""

    name: str
    label: str
    metric: str


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under a heading."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True, slots=True)
class Board:
    """A dashboard. `name`: of its file and its address."""

    name: str
    title: str
    meaning: str
    choices: Sequence[Choice]
    rows: Sequence[Row]


PROVIDER = Choice("provider", "provider", "tapeline_connected")
FEED = Choice("feed", "feed", "tapeline_connected")


def built(board: Board, docs: str) -> model.Dashboard:
    """Return the dashboard as Grafana's model. `docs`: the address of the documentation's site."""
    found = (
        dashboard.Dashboard(f"Tapeline: {board.title}")
        .uid(f"tapeline-{board.name}")
        .description(board.meaning)
        .tags([_TAG])
        .timezone("utc")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .refresh("10s")
        .time("now-1h", "now")
        .editable()
        .variables([_datasource(), *map(_choice, board.choices), _docs(docs)])
        .links([_others()])
    )
    ids = count(1)
    for row in board.rows:
        found.with_row(dashboard.Row(row.title).id(next(ids)))
        for panel in row.panels:
            found.with_panel(panel.id(next(ids)))
    made = found.build()
    for variable in made.templating.list_val or ():
        # The SDK gives each variable what is only an interval's, and later versions of Grafana do not know it.
        variable.auto = variable.auto_count = variable.auto_min = None
    return made


def _datasource() -> dashboard.DatasourceVariable:
    return dashboard.DatasourceVariable("datasource").label("data source").type("prometheus")


def _choice(choice: Choice) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(choice.name)
        .label(choice.name)
        .datasource(DATASOURCE)
        .query({"query": f"label_values({choice.metric}, {choice.label})", "refId": choice.name})
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(model.VariableOption(selected=True, text=["All"], value=["$__all"]))
    )


def _docs(address: str) -> dashboard.TextBoxVariable:
    return (
        dashboard.TextBoxVariable("docs")
        .label("documentation")
        .description("The address of Tapeline's documentation. The links to runbooks begin with it.")
        .default_value(address)
        .current(model.VariableOption(selected=True, text=address, value=address))
    )


def _others() -> dashboard.DashboardLink:
    return (
        dashboard.DashboardLink("Tapeline")
        .type(model.DashboardLinkType.DASHBOARDS)
        .tags([_TAG])
        .as_dropdown(False)
        .keep_time(True)
        .include_vars(True)
    )
