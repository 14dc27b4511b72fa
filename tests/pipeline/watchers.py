"""Those who watch a pipeline from outside, for tests: a scrape, Prometheus with our rules, the dashboards, and a webhook that is told."""

from __future__ import annotations

import json
import math
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import urllib3
import yaml
from prometheus_client.parser import text_string_to_metric_families

import tapeline
from dashboards import boards, filled, questions, variables

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Self

    from services.prometheus import Prometheus

    from dashboards import Question

DEPLOY: Final = Path(tapeline.__file__).parents[2] / "deploy"
Samples = dict[str, list[tuple[dict[str, str], float]]]


def metrics(listen: str) -> Samples:
    """Samples by their families; none while nobody answers."""
    try:
        text = urllib3.request("GET", f"http://{listen}/metrics", timeout=10.0, retries=False).data.decode()
    except urllib3.exceptions.HTTPError:
        return {}
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found[name] = [(dict(sample.labels), sample.value) for sample in family.samples]
    return found


def value(found: Samples, name: str, **labels: str) -> float | None:
    """The sum of a metric's samples with these labels; None if there are none."""
    values = [number for has, number in found.get(name, ()) if labels.items() <= has.items()]
    return sum(values) if values else None


def query(prometheus: Prometheus, text: str) -> list[tuple[dict[str, str], float]]:
    """What Prometheus answers now."""
    answer: dict[str, Any] = urllib3.request("POST", f"{prometheus.url}/api/v1/query", fields={"query": text}).json()
    assert answer["status"] == "success", (text, answer)
    return [(one["metric"], float(one["value"][1])) for one in answer["data"]["result"]]


def shipped_rules(folder: Path, target: str, alertmanager: str) -> str:
    """Our configuration of Prometheus with other addresses, in which each second counts: alerts need not last for minutes."""
    folder.mkdir()
    for path in (DEPLOY / "prometheus").glob("*.rules.yml"):
        (folder / path.name).write_text(re.sub(r"^( +for:) .*$", r"\1 1s", path.read_text(), flags=re.MULTILINE))
    settings = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    settings["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    settings["rule_files"] = [str(folder / name) for name in settings["rule_files"]]
    settings["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
    settings["alerting"]["alertmanagers"][0]["static_configs"] = [{"targets": [alertmanager]}]
    return json.dumps(settings)


def shipped_routes(webhook: str, *, at_once: bool) -> str:
    """Our configuration of Alertmanager with another address. `at_once`: with shorter waits, too."""
    settings = yaml.safe_load((DEPLOY / "alertmanager" / "alertmanager.yml").read_text())
    settings["receivers"][0]["webhook_configs"][0]["url"] = webhook
    if at_once:
        settings["route"] |= {"group_wait": "1s", "group_interval": "1s"}
    return json.dumps(settings)


@dataclass
class Webhook:
    """Where Alertmanager sends alerts. As a context manager it listens."""

    #: Each alert as it came.
    heard: list[dict[str, Any]] = field(default_factory=list)

    def __enter__(self) -> Self:
        heard = self.heard

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                heard.extend(message["alerts"])
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 as http.server names it
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/alerts"

    def last(self, name: str) -> dict[str, Any]:
        """What came last of an alert; empty if nothing did."""
        return next((one for one in reversed(self.heard) if one["labels"]["alertname"] == name), {})


@dataclass(frozen=True)
class Dashboards:
    """The dashboards, as somebody sees them who has chosen everything."""

    prometheus: Prometheus

    def answers(self) -> Iterator[tuple[Question, list[tuple[dict[str, str], float]]]]:
        """What Prometheus answers to each query of each panel."""
        chosen = {name: self._values(board) for name, board in boards().items()}
        for one in questions():
            yield one, query(self.prometheus, filled(one.expr, chosen[one.board]))

    def shown(self, panel: str) -> list[tuple[dict[str, str], float]]:
        """What a panel, `board: title`, shows now: the answer to its first query."""
        one = next(one for one in questions() if str(one) == panel)
        return query(self.prometheus, filled(one.expr, self._values(boards()[one.board])))

    def level(self, panel: str) -> float:
        """The highest number that a panel shows now; not a number if it shows none, as when a busy machine could not be scraped."""
        return max((number for _, number in self.shown(panel)), default=math.nan)

    def _values(self, board: Mapping[str, Any]) -> dict[str, str]:
        """The variables' values: of each, everything that there is to choose. The windows are those of a scrape each second."""
        found = {"__rate_interval": "4s", "__range": "1m"}
        for name, (metric, label) in variables(board).items():
            address = f"{self.prometheus.url}/api/v1/label/{label}/values"
            known = urllib3.request("GET", address, fields={"match[]": metric}).json()["data"]
            assert known, f"there is nothing to choose for ${name}"
            found[name] = "|".join(known)
        return found
