"""Parts, image files and checks that the service's tests share."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from models.calibration_set import calibrate
from models.configuration import DetectorConfiguration
from models.densities import DensityConfiguration, KernelDensityConfiguration, create_density
from models.detector import Detector
from models.encoders import DensePatchConfiguration, create_encoder
from models.geometry import Box
from models.images import place_image
from models.scan import Scan
from models.store import ModelStore

CATEGORY = "plate"
WIDTH, HEIGHT = 320, 200
DEFECT = Box(x=220, y=60, width=40, height=40)
MAX_UPLOAD_BYTES = 2**20
MAX_PIXELS = 2_000_000
DEFAULT_DENSITY = KernelDensityConfiguration()
PROGRAM = "from service.server import run; from service.settings import load_settings; run(load_settings())"


def part(seed: int, *, defective: bool = False) -> NDArray[np.uint8]:
    """A plate with a light gradient and noise, (HEIGHT, WIDTH, 3) RGB; a chequered hole at DEFECT if defective."""
    random = np.random.default_rng(seed)
    light = np.linspace(120, 160, WIDTH)[None, :, None] * np.array([1.0, 0.7, 0.5])
    noise = random.normal(0, 5, (HEIGHT, WIDTH, 3))
    image: NDArray[np.uint8] = np.clip(light + noise, 0, 255).astype(np.uint8)
    if defective:
        y, x = np.mgrid[: DEFECT.height, : DEFECT.width]
        squares = ((x // 5 + y // 5) % 2 * 255).astype(np.uint8)
        image[DEFECT.y : DEFECT.y + DEFECT.height, DEFECT.x : DEFECT.x + DEFECT.width] = squares[:, :, None]
    return image


def make_detector(
    category: str = CATEGORY, density: DensityConfiguration = DEFAULT_DENSITY, *, random_seed: int = 0, bank: int = 512
) -> Detector:
    """An untrained encoder, whose density and calibration are fitted on parts: enough to see a hole."""
    torch.manual_seed(random_seed)
    configuration = DetectorConfiguration(encoder=DensePatchConfiguration(width=4), density=density)
    encoder = create_encoder(configuration.encoder, configuration.geometry)
    side = configuration.geometry.image_size
    scan = Scan(configuration, encoder, create_density(configuration.density), torch.device("cpu"))
    placed = [place_image(part(seed), side, configuration.resize) for seed in range(16)]
    images = np.stack([pixels for pixels, _ in placed])
    embeddings = scan.embed(images[:8]).flatten(0, 2)
    scan.density.fit(embeddings[torch.randperm(len(embeddings))[:bank]].numpy())
    contents = [placement.content for _, placement in placed[8:]]
    calibration_set = calibrate(scan, configuration.geometry, images[8:], contents)
    return Detector(category, scan, calibration_set, data_fingerprint="0" * 64)


def publish_versions(root: Path, detectors: Sequence[Detector]) -> ModelStore:
    """A store that has them as the versions of CATEGORY, from 1 on; version 1 is active."""
    store = ModelStore(root)
    for detector in detectors:
        store.publish(CATEGORY, detector.save, activate=False)
    store.activate(CATEGORY, 1, author="trainer")
    return store


def encode(image: NDArray[Any], kind: str = "PNG", **options: Any) -> bytes:
    """An image file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims ``width`` x ``height`` pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def answer_of(response: httpx.Response) -> dict[str, Any]:
    """What a service answered, which must be that all is well."""
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def assert_problem(response: httpx.Response, status: int, slug: str, *mentions: str) -> dict[str, Any]:
    """Check that an answer is problem details of the kind expected, and nothing of the inside."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["type"] == f"urn:plumbline:problem:{slug}"
    assert problem["status"] == status
    assert problem["instance"] == f"urn:uuid:{response.headers['x-plumbline-id']}"
    assert problem["title"]
    for mention in mentions:
        assert mention in problem["detail"]
    for trace in ("Traceback", 'File "', "site-packages"):
        assert trace not in response.text
    return problem


def post_head(client: httpx.Client, path: str, length: int) -> str:
    """Announce a body of ``length`` bytes, send none of it, and give the status line that comes all the same."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: {length}\r\n\r\n"
    with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=30) as connection:
        connection.sendall(head.encode())
        return connection.recv(4096).decode().splitlines()[0]


def samples(client: httpx.Client, name: str, **labels: str) -> list[float]:
    """The values of a metric's samples that have these labels, in their order."""
    values = []
    for line in client.get("/metrics").text.splitlines():
        sample = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
        if sample and sample[1] == name:
            found = dict(re.findall(r'(\w+)="([^"]*)"', sample[2] or ""))
            if labels.items() <= found.items():
                values.append(float(sample[3]))
    return values


def metric(client: httpx.Client, name: str, **labels: str) -> float:
    """The sum of ``samples``; 0 where there is none."""
    return sum(samples(client, name, **labels), start=0.0)


class Gate:
    """Holds the worker inside ``Scan.look`` until it is opened."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.open = threading.Event()
        self.images = 0


@contextmanager
def held_worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """The worker waits at the gate with what it is given to score; the end opens the gate."""
    gate, look = Gate(), Scan.look

    def held(self: Scan, images: NDArray[np.uint8]) -> Any:
        gate.images += len(images)
        gate.entered.set()
        assert gate.open.wait(60)
        return look(self, images)

    monkeypatch.setattr(Scan, "look", held)
    try:
        yield gate
    finally:
        gate.open.set()


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Poll until something holds that will; the limit only keeps a broken test from waiting for ever."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


def is_ready(url: str) -> bool:
    """Whether a service says so; a process listens before it answers, which on a busy machine takes a while."""
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def process(
    models: Path, log: Path, environment: Mapping[str, str] | None = None, /, **settings: Any
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A service in a process of its own, ready, and its URL; whatever the end finds of it is killed.

    Args:
        log: the file that what it logs is written to; what it prints besides is in its ``stdout``.
        environment: more variables.
        settings: as in ``load_settings``, given as variables; one thread, a free port and no records where not said.
    """
    given = {"models": models, "port": 0, "threads": 1, "records": "none", **settings}
    variables = {f"PLUMBLINE_{name.upper()}": str(value) for name, value in given.items()}
    with (
        log.open("w") as file,
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            env=os.environ | (environment or {}) | variables,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
        ) as started,
    ):
        try:
            wait_until(lambda: bool(_addresses(log)) or started.poll() is not None, seconds=300)
            [url] = _addresses(log)
            wait_until(lambda: is_ready(url), seconds=300)
            yield started, url
        finally:
            started.kill()


def _addresses(log: Path) -> list[str]:
    """The addresses that a service's log says it listens on; its last line may still be under way."""
    lines = [json.loads(line) for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [line["url"] for line in lines if line["message"] == "listening"]
