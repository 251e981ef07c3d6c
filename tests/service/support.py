"""Parts, image files and checks that the service's tests share."""

from __future__ import annotations

import io
import socket
import struct
import time
import zlib
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from models.calibration_set import calibrate
from models.densities import DensityConfiguration, KernelDensityConfiguration, create_density
from models.detector import Detector, DetectorConfiguration, Scan
from models.encoders import DensePatchConfiguration, create_encoder
from models.geometry import Box
from models.images import place_image

CATEGORY = "plate"
WIDTH, HEIGHT = 320, 200
DEFECT = Box(x=220, y=60, width=40, height=40)
MAX_UPLOAD_BYTES = 2**20
MAX_PIXELS = 2_000_000
DEFAULT_DENSITY = KernelDensityConfiguration()


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
    category: str = CATEGORY, density: DensityConfiguration = DEFAULT_DENSITY, *, random_seed: int = 0
) -> Detector:
    """An untrained encoder, whose density and calibration are fitted on parts: enough to see a hole."""
    torch.manual_seed(random_seed)
    configuration = DetectorConfiguration(encoder=DensePatchConfiguration(width=4), density=density)
    encoder = create_encoder(configuration.encoder, configuration.geometry)
    side = configuration.geometry.image_size
    scan = Scan(configuration, encoder, create_density(configuration.density), torch.device("cpu"))
    placed = [place_image(part(seed), side, configuration.resize) for seed in range(16)]
    images = np.stack([pixels for pixels, _ in placed])
    bank = scan.embed(images[:8]).flatten(0, 2)
    scan.density.fit(bank[torch.randperm(len(bank))[:512]].numpy())
    contents = [placement.content for _, placement in placed[8:]]
    calibration_set = calibrate(scan, configuration.geometry, images[8:], contents)
    return Detector(category, scan, calibration_set, data_fingerprint="0" * 64)


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
