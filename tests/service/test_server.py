"""The process as an operator runs it, its log, its documentation."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.service.support import CATEGORY, encode, is_ready, part, wait_until

SCORE = "/v1/categories/{category}/score"
PROGRAM = "from service.server import run; from service.settings import load_settings; run(load_settings())"


@pytest.fixture
def process(models: Path) -> Iterator[subprocess.Popen[str]]:
    environment = {
        "PLUMBLINE_MODELS": str(models),
        "PLUMBLINE_PORT": "0",
        "PLUMBLINE_THREADS": "1",
        "PLUMBLINE_RECORDS": "none",
    }
    command = ["env", *(f"{name}={value}" for name, value in environment.items()), sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as started:
        yield started
        if started.poll() is None:
            started.kill()


def test_process_serves_logs_json_and_stops(process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    assert process.stdout is not None
    url = json.loads(process.stderr.readline())["url"]
    wait_until(lambda: is_ready(url))
    data = encode(part(0))
    response = httpx.post(f"{url}{SCORE.format(category=CATEGORY)}", files={"image": data})
    assert response.status_code == 200
    assert httpx.get(f"{url}/v1/categories/a%0Ab").status_code == 404
    process.send_signal(signal.SIGTERM)
    output, log = process.communicate(timeout=60)
    assert process.returncode in (0, -signal.SIGTERM)  # uvicorn raises the signal again once it has stopped
    assert output == ""
    lines = [json.loads(line) for line in log.splitlines()]
    requests = {line["id"]: line for line in lines if line["message"] == "request"}
    scored = requests[response.json()["id"]]
    assert scored["path"] == SCORE.format(category=CATEGORY)
    assert (scored["method"], scored["status"], scored["category"]) == ("POST", 200, CATEGORY)
    assert scored["verdict"] == response.json()["verdict"]
    assert scored["image_score"] == response.json()["image_score"]
    assert all(line["logger"].startswith(("plumbline.", "uvicorn.error")) for line in lines)
    assert not any("/readyz" in line.get("path", "") for line in lines)
    assert any(line["message"] == "model loaded" for line in lines)
    assert len(log) < len(data)


def test_documentation_needs_no_internet(client: httpx.Client) -> None:
    for page in ("/docs", "/redoc"):
        html = client.get(page).text
        assets = re.findall(r'(?:src|href)="([^"]+)"', html)
        assert assets
        for asset in assets:
            if asset.startswith("https://fonts."):
                continue  # ReDoc's typeface; the page reads without it
            assert asset.startswith("/")
            assert client.get(asset).status_code == 200


@pytest.fixture(scope="module")
def document(client: httpx.Client) -> dict[str, Any]:
    content: dict[str, Any] = client.get("/openapi.json").json()
    return content


def test_openapi_describes_both_ways_to_send_an_image(document: dict[str, Any]) -> None:
    for route in (SCORE, "/v1/categories/{category}/heatmap"):
        content = document["paths"][route]["post"]["requestBody"]["content"]
        assert set(content) == {"multipart/form-data", "application/octet-stream", "image/*"}


def test_openapi_references_are_there(document: dict[str, Any]) -> None:
    for reference in re.findall(r'"\$ref": "#/components/schemas/(\w+)"', json.dumps(document)):
        assert reference in document["components"]["schemas"]


def test_openapi_names_the_answers(client: httpx.Client, document: dict[str, Any]) -> None:
    heatmap = document["paths"]["/v1/categories/{category}/heatmap"]["post"]["responses"]["200"]
    assert set(heatmap["content"]) == {"image/png"}
    response = client.post(f"/v1/categories/{CATEGORY}/heatmap", files={"image": encode(part(0))})
    sent = {name for name in response.headers if name.startswith("x-plumbline-")}
    assert sent <= {name.lower() for name in heatmap["headers"]}
    for path, methods in document["paths"].items():
        if path.startswith("/v1/"):
            for method in methods.values():
                for status, answer in method["responses"].items():
                    if int(status) >= 400:
                        assert set(answer["content"]) == {"application/problem+json"}


def test_openapi_score_schema_holds_an_answer(client: httpx.Client, document: dict[str, Any]) -> None:
    answer = client.post(f"/v1/categories/{CATEGORY}/score?map=true", files={"image": encode(part(0))}).json()
    schema = document["components"]["schemas"]["Score"]
    assert set(answer) == set(schema["properties"])
    assert set(schema["required"]) <= set(answer)
