"""``plumbline score --url``: a service scores, through the client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.server import serving
from service.settings import load_settings
from tests.cli.conftest import Run
from tests.cli.support import CATEGORY, COMPUTE


@pytest.fixture(scope="module")
def url(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(load_settings(models=models, port=0, device="cpu", records=tmp_path_factory.mktemp("records"))) as url:
        yield url


def test_says_what_the_local_verb_says(run: Run, data: Path, models: Path, url: str, tmp_path: Path) -> None:
    folder, out = data / CATEGORY / "test", tmp_path / "out"
    remote = run("score", CATEGORY, folder, "--url", url, "--out", out, "--json")
    assert remote.status == 0, remote.errors
    images = sorted(folder.rglob("*.png"))
    local = run("score", CATEGORY, *images, "--models", models, "--json", *COMPUTE).result
    assert [entry["image"] for entry in remote.result["images"]] == [str(image) for image in images]
    for ours, theirs in zip(remote.result["images"], local["images"], strict=True):
        assert ours["image_score"] == pytest.approx(theirs["image_score"], abs=1e-5)
        assert (ours["verdict"], ours["threshold"]) == (theirs["verdict"], local["threshold"])
    assert json.loads((out / "scores.json").read_text()) == remote.result


def test_one_that_fails_does_not_stop_the_others(run: Run, data: Path, url: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    good = next((data / CATEGORY / "test" / "good").iterdir())
    outcome = run("score", CATEGORY, broken, good, "--url", url, "--json")
    assert outcome.status == 2
    first, second = outcome.result["images"]
    assert "unreadable-image" in first["error"]
    assert "image_score" in second


def test_refusals(run: Run, data: Path, url: str) -> None:
    good = next((data / CATEGORY / "test" / "good").iterdir())
    run("score", "bottle", good, "--url", url).assert_refused(2, "bottle", CATEGORY)
    run("score", CATEGORY, good, "--url", "nowhere").assert_refused(2, "--url", "'nowhere'")
    run("score", CATEGORY, good, "--url", url, "--version-number", "1").assert_refused(2, "--version-number")
