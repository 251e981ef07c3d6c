"""The process as an operator runs it, its log, its documentation."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, Protocol

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from service.telemetry import Telemetry
from tests.service.support import CATEGORY, encode, is_ready, part, wait_until

SCORE = "/v1/categories/{category}/score"
PROGRAM = "from service.server import run; from service.settings import load_settings; run(load_settings())"


class Start(Protocol):
    def __call__(self, **environment: str) -> tuple[subprocess.Popen[str], str]: ...


@pytest.fixture
def start(models: Path) -> Iterator[Start]:
    """Start a process with more variables of the environment; gives it and its URL when it is ready."""
    with ExitStack() as stack:

        def start(**environment: str) -> tuple[subprocess.Popen[str], str]:
            environment = {
                "PLUMBLINE_MODELS": str(models),
                "PLUMBLINE_PORT": "0",
                "PLUMBLINE_THREADS": "1",
                "PLUMBLINE_RECORDS": "none",
                **environment,
            }
            command = [
                "env",
                *(f"{name}={value}" for name, value in environment.items()),
                sys.executable,
                "-c",
                PROGRAM,
            ]
            process = stack.enter_context(
                subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            )
            stack.callback(process.kill)
            assert process.stderr is not None
            url: str = json.loads(process.stderr.readline())["url"]
            wait_until(lambda: is_ready(url))
            return process, url

        yield start


def test_process_serves_logs_json_and_stops(start: Start) -> None:
    process, url = start(PLUMBLINE_DRAIN_S="0")
    data = encode(part(0))
    response = httpx.post(f"{url}{SCORE.format(category=CATEGORY)}", files={"image": data})
    assert response.status_code == 200
    assert httpx.get(f"{url}/v1/categories/a%0Ab").status_code == 404
    process.send_signal(signal.SIGTERM)
    output, log = process.communicate(timeout=60)
    assert process.returncode == 0
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
    assert set(answer) == set(schema["properties"]) - {"invalidity"}  # of a detector that can tell
    assert set(schema["required"]) <= set(answer)


def test_sigterm_drains(start: Start) -> None:
    """Not ready at once; answers on; ends when what was accepted is answered."""
    process, url = start(PLUMBLINE_BATCH_WAIT_MS="10000", PLUMBLINE_BATCH_SIZE="100", PLUMBLINE_DRAIN_S="60")
    score, data = f"{url}{SCORE.format(category=CATEGORY)}", encode(part(0))
    headers = {"content-type": "image/png", "x-request-timeout": "120"}
    with ThreadPoolExecutor(4) as pool:
        accepted = [pool.submit(httpx.post, score, content=data, headers=headers, timeout=120) for _ in range(3)]
        wait_until(lambda: "plumbline_queue_depth 3.0" in httpx.get(f"{url}/metrics").text)
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: not is_ready(url))
        readiness = httpx.get(f"{url}/readyz")
        assert (readiness.status_code, readiness.json()["reason"]) == (503, "the service is stopping")
        assert httpx.get(f"{url}/healthz").status_code == 200
        late = pool.submit(httpx.post, score, content=data, headers=headers, timeout=120)  # still let in
        wait_until(lambda: "plumbline_queue_depth 4.0" in httpx.get(f"{url}/metrics").text or late.done())
        process.send_signal(signal.SIGTERM)  # do not wait for the rest of the minute
        assert [one.result().status_code for one in (*accepted, late)] == [200] * 4
    process.communicate(timeout=60)
    assert process.returncode in (0, -signal.SIGTERM)


def test_sigterm_ends_by_itself(start: Start) -> None:
    process, _ = start(PLUMBLINE_DRAIN_S="0.1")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_a_stall_of_the_event_loop_shows() -> None:
    async def main() -> None:
        telemetry = Telemetry()
        watch = asyncio.create_task(telemetry.watch_event_loop())
        await asyncio.sleep(0)
        time.sleep(1)  # what must never happen
        lag = telemetry.loop_lag

        def total() -> float:
            return sum(
                sample.value for metric in lag.collect() for sample in metric.samples if sample.name.endswith("_sum")
            )

        while total() == 0:
            await asyncio.sleep(0.01)
        assert total() > 0.5
        watch.cancel()

    asyncio.run(main())


class Collector(BaseHTTPRequestHandler):
    """A receiver of OpenTelemetry's protocol."""

    spans: ClassVar[list[Span]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                self.spans.extend(scope.spans)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[str]:
    Collector.spans.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_traces_go_where_the_environment_says(start: Start, collector: str) -> None:
    process, url = start(
        OTEL_EXPORTER_OTLP_ENDPOINT=collector, OTEL_SERVICE_NAME="line-7", OTEL_BSP_SCHEDULE_DELAY="100",
        PLUMBLINE_DRAIN_S="0"
    )  # fmt: skip
    sent = f"{7:032x}", f"{9:016x}"
    headers = {"content-type": "image/png", "traceparent": f"00-{sent[0]}-{sent[1]}-01"}
    heatmap = f"{url}/v1/categories/{CATEGORY}/heatmap"
    assert httpx.post(heatmap, content=encode(part(0)), headers=headers).status_code == 200
    process.send_signal(signal.SIGTERM)  # what was not sent yet is sent
    process.communicate(timeout=60)
    spans = {span.name: span for span in Collector.spans}
    stages = ["upload", "decode", "place", "queue", "score", "judge", "render"]
    [request] = [span for span in Collector.spans if span.kind == Span.SPAN_KIND_SERVER]
    assert set(spans) == {*stages, request.name}
    assert all(span.trace_id.hex() == sent[0] for span in Collector.spans)
    assert request.parent_span_id.hex() == sent[1]
    attributes = {attribute.key: attribute.value for attribute in request.attributes}
    assert attributes["plumbline.category"].string_value == CATEGORY
    assert attributes["plumbline.verdict"].string_value == "good"
    assert attributes["http.response.status_code"].int_value == 200
    starts = [spans[stage].start_time_unix_nano for stage in stages]
    assert starts == sorted(starts)
    for stage in stages:
        assert spans[stage].parent_span_id == request.span_id
        assert (
            request.start_time_unix_nano - 1e6 <= spans[stage].start_time_unix_nano <= spans[stage].end_time_unix_nano
        )
        assert spans[stage].end_time_unix_nano <= request.end_time_unix_nano + 1e6
