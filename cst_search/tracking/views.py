"""Saved views of a study in MLflow's own UI, under "Views": columns, filter and charts.

MLflow 3.17 stores a saved view as a tag of the experiment: ``mlflow.sharedViewState.ID`` with a name, two times and the
state of the page (https://mlflow.org/docs/latest/ml/tracking/). An older UI ignores the tag and keeps its own defaults.
`mlflow_mirror` writes the tags; nothing here calls MLflow.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from cst_search.study.records import StudyInfo

IN_MB = "working_mb"  # metric: `TrialRecord.working_bytes` in MB
TAG = "mlflow.sharedViewState."
ON_FRONT = 'tags."cst.pareto" = "true"'
_TRIALS = 'tags."cst.kind" = "trial"'
_SECTION = "cst-charts"
_MOST_PARAMS = 6  # axes besides the metrics; the chart is small, and the UI can add others


def make_views(info: StudyInfo) -> dict[str, str]:
    """Return the experiment's tags with the views ``front`` and ``trials``, each a table with charts."""
    compared = [IN_MB if o.compared == "working_bytes" else o.compared for o in info.objectives]
    metrics = list(dict.fromkeys(["map", *compared]))
    more = [name for name in (IN_MB, "device_bytes", "trainable_params") if name not in metrics]
    columns = [f"metrics.`{name}`" for name in [*metrics, *more]]
    columns = sorted(columns, key=lambda column: "map" not in column)
    columns += ["tags.`cst.state`", "params.`method`"]
    columns += [f"params.`{name}`" for name in _common(info) if name != "method"]
    views = {
        "front": _state("Pareto front", ON_FRONT, columns, _charts(info, metrics)),
        "trials": _state("All trials", _TRIALS, columns, _charts(info, metrics)),
    }
    return {f"{TAG}cst-{key}": value for key, value in views.items()}


def is_ours(value: str) -> bool:
    """Return True if a view is as `make_views` wrote it, i.e. nobody has changed it since."""
    try:
        view = json.loads(value)
        return bool(view["createdAt"] == view["updatedAt"])
    except (ValueError, KeyError, TypeError):
        return False


def _common(info: StudyInfo) -> list[str]:
    """Return the dimensions that all configurations have and that vary: a chart omits runs that lack one of them."""
    configs = [record.config for record in info.trials]
    if not configs:
        return []
    names = [name for name in configs[0] if all(name in config for config in configs)]
    return [name for name in names if len({str(config[name]) for config in configs}) > 1][:_MOST_PARAMS]


def _charts(info: StudyInfo, metrics: Sequence[str]) -> list[dict[str, Any]]:
    """Return the charts: scatter and contour of objectives, parallel coordinates of dimensions, learning curves."""
    costs = [name for name in metrics if not name.startswith("map")] or [IN_MB]
    charts: list[dict[str, Any]] = [
        {"type": "SCATTER", "xaxis": _axis(cost), "yaxis": _axis("map"), "displayName": f"map and {cost}"}
        for cost in costs
    ]
    charts.append({
        "type": "PARALLEL", "selectedParams": _common(info), "selectedMetrics": [*costs, "map"], "showAllRuns": True,
        "displayName": "dimensions",
    })  # fmt: skip
    if len(costs) > 1:
        charts.append({
            "type": "CONTOUR", "xaxis": _axis(costs[0]), "yaxis": _axis(costs[1]), "zaxis": _axis("map"),
            "displayName": f"map over {costs[0]} and {costs[1]}",
        })  # fmt: skip
    for name in ("map", "loss"):
        charts.append({
            "type": "LINE", "metricKey": name, "selectedMetricKeys": [name], "displayName": f"{name} by epoch",
            "lineSmoothness": 0, "xAxisKey": "step", "xAxisScaleType": "linear", "scaleType": "linear", "range": {},
            "selectedXAxisMetricKey": "", "yAxisKey": "metric", "yAxisExpressions": [], "ignoreOutliers": False,
            "useGlobalXaxisKey": True, "useGlobalLineSmoothing": True,
        })  # fmt: skip
    shared = {"metricSectionId": _SECTION, "deleted": False, "isGenerated": False, "runsCountToCompare": 100}
    return [chart | shared | {"uuid": f"cst-{i}"} for i, chart in enumerate(charts)]


def _axis(metric: str) -> dict[str, str]:
    return {"key": metric, "type": "METRIC"}


def _state(name: str, search: str, columns: Sequence[str], charts: Sequence[Mapping[str, Any]]) -> str:
    state = {
        "searchFilter": search,
        "orderByKey": "metrics.`map`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": list(columns),
        "columnOrder": ["attributes.`Run Name`", *columns],
        "columnWidths": {"attributes.`Run Name`": 380},
        "runsHiddenMode": "SHOWALL",
        "compareRunCharts": list(charts),
        "compareRunSections": [
            {"uuid": _SECTION, "name": name, "display": True, "isReordered": False, "deleted": False,
             "isGenerated": False, "columns": 2},  # in three columns, parallel coordinates overlap
        ],
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": False,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }  # fmt: skip
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    # equal times mean that nobody has changed it
    return json.dumps({"name": name, "createdAt": 1, "updatedAt": 1, "state": f"deflate;{packed}"})
