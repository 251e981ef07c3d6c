"""Mutated image files on a running service: no 5xx, no growth of memory. ``make fuzz`` sends 10,000."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import httpx
import pytest

from benchmarks.serving import served
from tests.service.corpus import mutated, seeds
from tests.service.support import CATEGORY, MAX_PIXELS, MAX_UPLOAD_BYTES, assert_problem, encode, part

ROOT = Path(__file__).resolve().parents[2]
COUNT = int(os.environ.get("PLUMBLINE_FUZZ_IMAGES", "300"))
ROUNDS = 30
CLIENTS = 3

# Of the median of the last ten rounds over that of the ten before: one alone may come while large buffers are held.
# A short run still warms up.
MOST_GROWTH = 0.02 if COUNT >= 10_000 else 0.05

KINDS = {400: "malformed-multipart", 413: None, 415: "unsupported-image", 422: "unreadable-image"}


def send(client: httpx.Client, number: int) -> int:
    """Send a file of the corpus in one of the ways that there are; check the answer; give its status."""
    how, data = mutated(1, number)
    output = ("score", "score", "heatmap", "heatmap?style=raw")[number // 7 % 4]
    path = f"/v1/categories/{CATEGORY}/{output}"
    if number % 3:
        response = client.post(path, content=data, headers={"Content-Type": "application/octet-stream"})
    else:
        response = client.post(path, files={"image": data})
    where = f"file {number}: {how}: {response.status_code} {response.text[:300] if response.is_error else ''}"
    assert response.status_code in (200, *KINDS), where
    if response.is_error:
        kind = KINDS[response.status_code]
        slug = response.json()["type"].rsplit(":", 1)[1]
        assert slug == kind or (kind is None and slug in ("image-too-large", "upload-too-large")), where
        assert_problem(response, response.status_code, slug)
    return response.status_code


def test_the_corpus_is_the_same_every_time() -> None:
    assert mutated(3, 4) == mutated(3, 4)
    assert len({mutated(3, number) for number in range(200)}) > 150


@pytest.mark.slow
def test_mutated_images(models: Path, tmp_path: Path) -> None:
    settings = {"max_upload_bytes": MAX_UPLOAD_BYTES, "max_pixels": MAX_PIXELS, "records": tmp_path}
    with served(models, **settings) as service, httpx.Client(base_url=service.url, timeout=120) as client:
        statuses: Counter[int] = Counter()
        memory = []
        with ThreadPoolExecutor(CLIENTS) as pool:
            for round_ in range(ROUNDS):
                numbers = range(round_ * COUNT // ROUNDS, (round_ + 1) * COUNT // ROUNDS)
                statuses.update(pool.map(lambda number: send(client, number), numbers))
                memory.append(service.resident_bytes())
        print(json.dumps({"images": COUNT, "statuses": dict(sorted(statuses.items())), "resident_bytes": memory}))
        assert client.get("/healthz").status_code == 200
        answer = client.post(f"/v1/categories/{CATEGORY}/score", files={"image": encode(part(0))})
        assert answer.status_code == 200
    assert statuses.total() == COUNT
    assert set(statuses) >= {200, 413, 415, 422}, "the corpus no longer reaches all that it should"
    before, after = median(memory[10:20]), median(memory[20:])  # the first ten warm up
    assert after <= (1 + MOST_GROWTH) * before, memory


def test_no_warning_for_every_fault_that_is_read_past() -> None:
    """In a process of its own, because pytest has its own filters of warnings."""
    script = """
from models.images import ImageError, decode_image
from tests.service.corpus import mutated
for number in range(300):
    try:
        decode_image(mutated(0, number)[1], max_pixels=2_000_000)
    except ImageError:
        pass
"""
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "Warning" not in result.stderr


def test_every_form_of_an_accepted_format_is_taken_or_refused_by_name(models: Path, client: httpx.Client) -> None:
    """The seeds themselves, unharmed."""
    statuses = {}
    for name, data in seeds().items():
        response = client.post(f"/v1/categories/{CATEGORY}/score", files={"image": data})
        statuses[name] = response.status_code
    refused = {name: status for name, status in statuses.items() if status != 200}
    assert refused == {
        "png animated": 415,
        "tiff float": 415,
        "tiff pages": 415,
        "webp animated": 415,
        "gif": 415,
        "jpeg 2000": 415,
        "ppm": 415,
        "bomb of pixels": 413,
        "bomb within the limit": 422,
        "bomb of text": 422,
        "bomb of colour profile": 422,
        "bomb of a tile": 413,
        "nothing": 422,
        "text": 422,
    }
