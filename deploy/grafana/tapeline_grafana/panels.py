"""How panels look: a number, lines, states and rows of a table. Each has a title, a meaning, a unit, and a link to its runbook."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Final, TypeAlias, TypeVar

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.models import common as look
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

#: The variables that every dashboard has.
DATASOURCE: Final = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
_RUNBOOK: Final = "${docs}/alerts.html#"
#: What a number shows where Prometheus knows nothing. It is red: nobody knows whether all is well.
UNKNOWN: Final = "unknown"
GREEN, ORANGE, RED, GREY = "green", "orange", "red", "text"

Panel: TypeAlias = stat.Panel | timeseries.Panel | statetimeline.Panel | table.Panel
_Some = TypeVar("_Some", stat.Panel, timeseries.Panel, statetimeline.Panel, table.Panel)


@dataclass(frozen=True, slots=True)
class What:
    """What a panel shows."""

    title: str
    #: One or two sentences: what it means, and what is good or bad.
    meaning: str
    unit: str
    #: The heading of docs/alerts.md that says what to do.
    runbook: str = ""
    #: From which value on it is orange, and red.
    orange: float | None = None
    red: float | None = None
    width: int = 8
    height: int = 7


@dataclass(frozen=True, slots=True)
class Query:
    """A query, and the name of each of its series: `{{label}}` is the value of a label."""

    expr: str
    legend: str


def number(what: What, expr: str, *, lower_is_worse: bool = False) -> stat.Panel:
    """A single number, in the colour of its level. Without a value, it is unknown and red."""
    found = _dressed(stat.Panel(), what, [Query(expr, "__auto")], instant=True)
    steps = _falling(what) if lower_is_worse else _rising(what, least=RED)
    return (
        found.thresholds(dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps))
        .no_value(UNKNOWN)
        .color_mode(look.BigValueColorMode.BACKGROUND)
        .graph_mode(look.BigValueGraphMode.NONE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )


def lines(what: What, *queries: Query) -> timeseries.Panel:
    """Values over time. A threshold is a dashed line."""
    steps = _rising(what, least=GREEN)
    found = (
        _dressed(timeseries.Panel(), what, queries)
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(look.LegendDisplayMode.TABLE)
            .placement(look.LegendPlacement.BOTTOM)
            .calcs(["lastNotNull", "max"])
        )
        .tooltip(common.VizTooltipOptions().mode(look.TooltipDisplayMode.MULTI).sort(look.SortOrder.DESCENDING))
        .fill_opacity(8)
        .min(0)
    )
    if len(steps) > 1:
        found.thresholds(dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps))
        found.thresholds_style(common.GraphThresholdsStyleConfig().mode(look.GraphThresholdsStyleMode.DASHED))
    return found


def states(what: What, query: Query, no: str, yes: str, *, no_is: str = RED) -> statetimeline.Panel:
    """For each series, when it was 0 (`no`) and when it was 1 (`yes`)."""
    meanings = {
        "0": model.ValueMappingResult(text=no, color=no_is, index=0),
        "1": model.ValueMappingResult(text=yes, color=GREEN, index=1),
    }
    return (
        _dressed(statetimeline.Panel(), what, [query])
        .mappings([model.ValueMap(options=meanings)])
        .show_value(look.VisibilityMode.NEVER)
        .row_height(0.8)
        .legend(
            common.VizLegendOptions().show_legend(True).display_mode(look.LegendDisplayMode.LIST).placement(look.LegendPlacement.BOTTOM)
        )
    )


def rows(what: What, expr: str, columns: Sequence[str], value: str = "") -> table.Panel:
    """A row for each series: the labels that are `columns`, and its value under the heading `value`; empty: without the value."""
    found = _dressed(table.Panel(), what, [Query(expr, "__auto")], instant=True, form=PromQueryFormat.TABLE)
    shown = [*columns, *(["Value"] if value else [])]
    arranged = {
        "includeByName": dict.fromkeys(shown, True),
        "indexByName": {name: place for place, name in enumerate(shown)},
        "renameByName": {"Value": value} if value else {},
    }
    return found.no_value("none").with_transformation(model.DataTransformerConfig(id_val="organize", options=arranged))


def linked(panel: table.Panel, column: str, title: str, path: str) -> table.Panel:
    """The same table with a link in a column. `path`: below the documentation's address; `${__value.text}` is the cell."""
    link = {"title": title, "url": f"${{docs}}/{path}", "targetBlank": True}
    return panel.override_by_name(column, [model.DynamicConfigValue(id_val="links", value=[link])])


def _dressed(
    panel: _Some, what: What, queries: Sequence[Query], *, instant: bool = False, form: PromQueryFormat = PromQueryFormat.TIME_SERIES
) -> _Some:
    panel.title(what.title).description(what.meaning).datasource(DATASOURCE).unit(what.unit).span(what.width).height(what.height)
    if what.runbook:
        link = dashboard.DashboardLink("What to do").type(model.DashboardLinkType.LINK)
        panel.links([link.url(_RUNBOOK + what.runbook).target_blank(True)])
    for place, query in zip(count(), queries):
        asked = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(chr(ord("A") + place))
        asked.datasource(DATASOURCE).format(form)
        panel.with_target(asked.instant() if instant else asked.range())
    return panel


def _rising(what: What, least: str) -> list[model.Threshold]:
    """Green from 0 on, then orange and red. `least`: the colour below 0, and without a value."""
    steps = [model.Threshold(value=None, color=least)]
    steps += [model.Threshold(value=0, color=GREEN)] if least != GREEN else []
    steps += [model.Threshold(value=what.orange, color=ORANGE)] if what.orange is not None else []
    return steps + ([model.Threshold(value=what.red, color=RED)] if what.red is not None else [])


def _falling(what: What) -> list[model.Threshold]:
    """Red below the first level, orange below the second, else green."""
    steps = [model.Threshold(value=None, color=RED)]
    if what.orange is not None:
        steps.append(model.Threshold(value=what.red or 0, color=ORANGE))
    return [*steps, model.Threshold(value=what.orange if what.orange is not None else what.red, color=GREEN)]
