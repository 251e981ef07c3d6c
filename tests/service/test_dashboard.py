"""Prometheus scrapes a running service as operators have it set up, and the dashboard shows what it says."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from service.keys import create_key
from service.security import Scope
from tests.service.conftest import Serve
from tests.service.support import CATEGORY, encode, part, wait_until

DOCKER = Path(__file__).parents[2] / "docker"
DASHBOARD: dict[str, Any] = json.loads((DOCKER / "grafana" / "dashboards" / "plumbline.json").read_text())
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES: list[str] = [target["expr"] for panel in PANELS for target in panel["targets"]]
PROMETHEUS = shutil.which("prometheus")

# What this service has nothing to say of: no GPU, no records, no shadow, nobody to tell; and nothing is wrong.
SILENT = (
    "gpu_bytes",
    "shadow_verdicts",
    "results_",
    "model_swaps",
    "model_failures",
    "record_failures",
    "pictures_total",
    "ALERTS",
)


@pytest.fixture(scope="module")
def observed(
    serve: Serve, models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[httpx.Client, Path]]:
    """A service that asks for keys and was asked with and without one, and the file of Prometheus's key."""
    folder = tmp_path_factory.mktemp("keys")
    keys, secret = folder / "keys.json", folder / "metrics.key"
    secret.write_text(create_key(keys, "prometheus", ())[1] + "\n")
    score = {"Authorization": f"Bearer {create_key(keys, 'line', (Scope.SCORE,))[1]}"}
    with serve(models, keys=keys) as client:
        for headers in (score, {}):
            client.post(f"/v1/categories/{CATEGORY}/score", files={"image": encode(part(0))}, headers=headers)
        yield client, secret


def test_every_metric_and_label_of_the_dashboard_is_there(observed: tuple[httpx.Client, Path]) -> None:
    client, secret = observed
    exposed = client.get("/metrics", headers={"Authorization": f"Bearer {secret.read_text().strip()}"}).text
    families = set(re.findall(r"^# TYPE (\w+) ", exposed, re.MULTILINE))
    for query in (*QUERIES, *(variable["query"]["query"] for variable in DASHBOARD["templating"]["list"])):
        names = re.findall(r"\b(?:plumbline|process)_\w+", query)
        assert names or query.startswith("up") or "ALERTS" in query, query
        for name in names:
            assert {name, re.sub(r"_(bucket|sum|count)$", "", name)} & families, query


def test_panels_use_the_data_source_that_is_provisioned() -> None:
    (source,) = yaml.safe_load((DOCKER / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert {(panel["datasource"]["type"], panel["datasource"]["uid"]) for panel in PANELS} == {
        (source["type"], source["uid"])
    }
    scrape = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scrape
    identifiers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(identifiers) == len(set(identifiers))


@pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed (apt-get install prometheus)")
def test_prometheus_scrapes_with_its_key_and_answers_every_panel(
    observed: tuple[httpx.Client, Path], tmp_path: Path
) -> None:
    client, secret = observed
    with prometheus(tmp_path, f"127.0.0.1:{client.base_url.port}", secret) as server:

        def ask(query: str) -> list[dict[str, Any]]:
            query = query.replace("$__rate_interval", "5s").replace("$category", ".*")
            answer = server.get("/api/v1/query", params={"query": query})
            assert answer.status_code == 200, (query, answer.text)
            result: list[dict[str, Any]] = answer.json()["data"]["result"]
            return result

        # Two scrapes at least, of which a rate can be made.
        wait_until(lambda: bool(ask("count_over_time(plumbline_worker_up[1m]) >= 3")))
        assert [one["value"][1] for one in ask('up{job="plumbline"}')] == ["1"]
        (rules,) = server.get("/api/v1/rules").json()["data"]["groups"]
        assert len(rules["rules"]) > 0
        silent = [query for query in QUERIES if not ask(query)]
        assert [query for query in silent if not any(name in query for name in SILENT)] == []
        secret.write_text("plumb_0_0\n")
        wait_until(lambda: [one["value"][1] for one in ask('up{job="plumbline"}')] == ["0"])


@contextmanager
def prometheus(folder: Path, target: str, secret: Path) -> Iterator[httpx.Client]:
    """The real program with our configuration, but for the addresses and files of this machine, and in a hurry."""
    configuration = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())
    configuration["global"] = {"scrape_interval": "200ms", "scrape_timeout": "200ms", "evaluation_interval": "200ms"}
    configuration["rule_files"] = [str(DOCKER / "prometheus" / name) for name in configuration["rule_files"]]
    (job,) = configuration["scrape_configs"]
    assert job["authorization"]["credentials_file"] == "/run/secrets/metrics_key"
    job["authorization"]["credentials_file"] = str(secret)
    assert job["static_configs"] == [{"targets": ["plumbline:8000"]}]
    job["static_configs"] = [{"targets": [target]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    assert PROMETHEUS is not None
    command = (
        PROMETHEUS,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        "--web.listen-address=127.0.0.1:0",
    )
    log = folder / "log"
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file) as process:
        try:
            wait_until(lambda: process.poll() is not None or "Listening on" in log.read_text())
            address = re.search(r"Listening on.*address=127\.0\.0\.1:(\d+)", log.read_text())
            assert address is not None, log.read_text()
            with httpx.Client(base_url=f"http://127.0.0.1:{address[1]}", timeout=60) as client:
                wait_until(lambda: client.get("/-/ready").status_code == 200)
                yield client
        finally:
            process.send_signal(signal.SIGTERM)
