"""The process as an operator runs it, its log, its documentation."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from service.app import create_app
from service.server import _listen, _Server, run
from service.settings import Settings, load_settings
from service.telemetry import Telemetry
from tests.service.support import CATEGORY, encode, is_ready, metric, part, process, wait_until
from tests.signals import called_again

SCORE = "/v1/categories/{category}/score"


def test_process_serves_logs_json_and_stops(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLUMBLINE_REQUEST_TIMOUT_S", "5")  # misspelt
    file, data = tmp_path / "log", encode(part(0))
    with process(models, file, drain_s=0) as (service, url):
        response = httpx.post(f"{url}{SCORE.format(category=CATEGORY)}", files={"image": data}, timeout=60)
        assert response.status_code == 200
        assert httpx.get(f"{url}/v1/categories/a%0Ab").status_code == 404
        service.send_signal(signal.SIGTERM)
        output, _ = service.communicate(timeout=60)
    assert service.returncode == 0
    assert output == ""
    log = file.read_text()
    lines = [json.loads(line) for line in log.splitlines()]
    assert lines[0]["url"] == url
    assert "PLUMBLINE_REQUEST_TIMOUT_S" in lines[1]["names"]
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


def test_what_was_imported_is_left_out_of_collections(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gc.collect()
    imported = len(gc.get_objects())
    seen: list[int] = []

    def serve(_: _Server, sockets: list[socket.socket]) -> None:
        seen.append(gc.get_freeze_count())
        sockets[0].close()

    monkeypatch.setattr(_Server, "run", serve)
    run(Settings(models=models, port=0, device="cpu", records="none"))
    assert seen[0] > 0.9 * imported
    assert gc.get_freeze_count() == 0


def test_head_is_get_without_its_body(client: httpx.Client) -> None:
    """As monitors and load balancers ask."""
    for path in ("/healthz", "/readyz", "/docs", "/metrics", "/v1/categories", "/v2/health/ready"):
        head, get = client.head(path), client.get(path)
        assert (head.status_code, head.content) == (200, b""), path
        assert head.headers["content-type"] == get.headers["content-type"]
    assert client.head("/v1/categories/none").status_code == 404
    response = client.head(SCORE.format(category=CATEGORY))
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert client.put("/healthz").headers["allow"] == "GET, HEAD"
    assert metric(client, "plumbline_requests_total", method="HEAD", route="/healthz", status="200") == 1


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


def test_sigterm_drains(models: Path, tmp_path: Path) -> None:
    """Not ready at once; answers on; ends when what was accepted is answered."""
    data, headers = encode(part(0)), {"content-type": "image/png", "x-request-timeout": "120"}
    settings = {"batch_wait_ms": 10000, "batch_size": 100, "drain_s": 60}
    with process(models, tmp_path / "log", **settings) as (service, url):
        score = f"{url}{SCORE.format(category=CATEGORY)}"
        with ThreadPoolExecutor(4) as pool:
            accepted = [pool.submit(httpx.post, score, content=data, headers=headers, timeout=120) for _ in range(3)]
            wait_until(lambda: "plumbline_queue_depth 3.0" in httpx.get(f"{url}/metrics").text)
            service.send_signal(signal.SIGTERM)
            wait_until(lambda: not is_ready(url))
            readiness = httpx.get(f"{url}/readyz")
            assert (readiness.status_code, readiness.json()["reason"]) == (503, "the service is stopping")
            assert httpx.get(f"{url}/healthz").status_code == 200
            late = pool.submit(httpx.post, score, content=data, headers=headers, timeout=120)  # still let in
            wait_until(lambda: "plumbline_queue_depth 4.0" in httpx.get(f"{url}/metrics").text or late.done())
            service.send_signal(signal.SIGTERM)  # do not wait for the rest of the minute
            assert [one.result().status_code for one in (*accepted, late)] == [200] * 4
        service.communicate(timeout=60)
    assert service.returncode in (0, -signal.SIGTERM)


def test_sigterm_ends_by_itself(models: Path, tmp_path: Path) -> None:
    with process(models, tmp_path / "log", drain_s=0.1) as (service, _):
        service.send_signal(signal.SIGTERM)
        service.communicate(timeout=60)
    assert service.returncode == 0


@pytest.mark.timeout(60)
def test_a_signal_that_comes_while_another_is_taken_holds_nothing_up(models: Path) -> None:
    again = 1
    while again:
        server = _Server(create_app(load_settings(models=models, records="none")))
        again = called_again(partial(server.handle_exit, signal.SIGTERM, None), again)
        assert server._service.stopping


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


def test_traces_go_where_the_environment_says(models: Path, tmp_path: Path, collector: str) -> None:
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector,
        "OTEL_SERVICE_NAME": "line-7",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    sent = f"{7:032x}", f"{9:016x}"
    headers = {"content-type": "image/png", "traceparent": f"00-{sent[0]}-{sent[1]}-01"}
    with process(models, tmp_path / "log", environment, drain_s=0) as (service, url):
        heatmap = f"{url}/v1/categories/{CATEGORY}/heatmap"
        assert httpx.post(heatmap, content=encode(part(0)), headers=headers, timeout=60).status_code == 200
        service.send_signal(signal.SIGTERM)  # what was not sent yet is sent
        service.communicate(timeout=60)
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


def test_no_answer_waits_for_an_acknowledgement(tmp_path: Path) -> None:
    """By Nagle's algorithm (RFC 896) the body of an answer would, on a connection that is kept, until its head is."""
    with (
        _listen(Settings(models=tmp_path, port=0)) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
