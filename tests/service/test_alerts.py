"""The alerts that operators are given ask for metrics that there are."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest
import yaml

from service import errors
from service.errors import ProblemKind
from service.publishing.webhook import WebhookOutlet
from service.settings import load_settings
from service.telemetry import Telemetry
from tests.service.support import CATEGORY, encode, part

RULES = Path(__file__).parents[2] / "docker" / "prometheus" / "alerts.yml"
PROMTOOL = shutil.which("promtool")


def alerts() -> list[dict[str, str]]:
    found: list[dict[str, str]] = [
        rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
    ]
    return found


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (apt-get install prometheus)")
def test_prometheus_takes_the_rules() -> None:
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, "check", "rules", str(RULES)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(alerts())} rules found" in done.stdout


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (apt-get install prometheus)")
@pytest.mark.parametrize(("inspections", "fires"), [(1, False), (19, False), (20, True)])
def test_few_parts_are_no_many_rejects(tmp_path: Path, inspections: int, fires: bool) -> None:
    assert PROMTOOL is not None
    known = {"plumbline_rejected_share": 1, "plumbline_latest_inspections": inspections}
    series = [
        {"series": f'{name}{{category="bottle",instance="i",job="plumbline"}}', "values": f"{value}x30"}
        for name, value in known.items()
    ]
    labels = {"category": "bottle", "instance": "i", "job": "plumbline", "severity": "warning"}
    summary = "bottle: 100% of the latest parts were not accepted"
    expected = [{"exp_labels": labels, "exp_annotations": {"summary": summary}}] if fires else []
    case = {"eval_time": "20m", "alertname": "PlumblineManyRejects", "exp_alerts": expected}
    content = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": series, "alert_rule_test": [case]}],
    }
    (tmp_path / "test.yml").write_text(yaml.safe_dump(content))
    done = subprocess.run(
        [PROMTOOL, "test", "rules", str(tmp_path / "test.yml")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_metric_is_there_with_the_labels_asked_for(client: httpx.Client) -> None:
    score = f"/v1/categories/{CATEGORY}/score"
    client.post(score, content=encode(part(0)), headers={"content-type": "image/png"})
    exposed = client.get("/metrics").text
    families = set(re.findall(r"^# TYPE (\w+) ", exposed, re.MULTILINE))
    for alert in alerts():
        asked = re.findall(r"plumbline_\w+", alert["expr"])
        assert asked or "up{" in alert["expr"]
        for name in asked:
            assert name.removesuffix("_bucket") in families, alert["alert"]
    for label in re.findall(r"\$labels\.(\w+)", RULES.read_text()):
        assert label == "instance" or f'{label}="' in exposed


def test_every_reason_is_a_problem_that_there_is() -> None:
    kinds = {kind.slug for kind in vars(errors).values() if isinstance(kind, ProblemKind)}
    asked = {reason for found in re.findall(r'reason=~?"([^"]+)"', RULES.read_text()) for reason in found.split("|")}
    assert asked
    assert asked <= kinds
    # Too late is too late, whether that shows before the scan or after; a foreign protocol answers more with 500.
    assert {kind for kind in kinds if kind.startswith("deadline-")} | {errors.INTERNAL_ERROR.slug} <= asked


def test_what_must_not_rise_is_counted_from_the_start(tmp_path: Path) -> None:
    """Prometheus sees no rise in a counter that appears with its first event, so the first would wake nobody."""
    telemetry = Telemetry()
    settings = load_settings(models=tmp_path, webhook_secret="a secret of the tests")
    WebhookOutlet("webhook-1", "http://127.0.0.1/results", settings, telemetry)
    counted = {
        (sample.name, value)
        for metric in telemetry.registry.collect()
        for sample in metric.samples
        for value in sample.labels.values()
    }
    rising = [found for alert in alerts() for found in re.findall(r'increase\((\w+)\{\w+=~?"(.+?)"\}', alert["expr"])]
    assert len(rising) == RULES.read_text().count("increase(")
    for name, values in rising:
        assert {(name, value) for value in values.split("|")} <= counted


def test_the_manual_says_what_to_do() -> None:
    manual = (RULES.parents[2] / "docs" / "operations.md").read_text()
    for alert in alerts():
        assert f"`{alert['alert']}`" in manual
