"""``plumbline score --url``: a service scores, through the client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from client import Client, Score, Unauthorized
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


def test_what_was_scored_before_the_key_was_refused_is_told(
    run: Run, data: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score(client: Client, category: str, image: Path) -> Score:
        if image == second:
            raise Unauthorized(401, "no-key", "the key was revoked", None, None)
        return original(client, category, image)

    original = Client.score
    monkeypatch.setattr(Client, "score", score)
    first, second = sorted((data / CATEGORY / "test").glob("*/000.png"))[:2]
    outcome = run("score", CATEGORY, first, second, "--url", url, "--out", tmp_path / "out", "--json")
    assert outcome.status == 2
    result = outcome.result
    sentence = f"{url}: the key was revoked (the key is read from PLUMBLINE_API_KEY), after 1 of 2 files"
    assert result.pop("error") == sentence
    assert [entry["image"] for entry in result["images"]] == [str(first)]
    assert json.loads((tmp_path / "out" / "scores.json").read_text()) == result


def test_refusals(run: Run, data: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("score", CATEGORY, tmp_path, "--url", url).assert_refused(2, "no image", str(tmp_path))
    good = next((data / CATEGORY / "test" / "good").iterdir())
    run("score", "bottle", good, "--url", url).assert_refused(2, "bottle", CATEGORY)
    run("score", CATEGORY, good, "--url", "nowhere").assert_refused(2, "--url", "'nowhere'")
    run("score", CATEGORY, good, "--url", url, "--version-number", "1").assert_refused(2, "--version-number")
    monkeypatch.setenv("PLUMBLINE_API_KEY", "plumb_key\n")
    refused = run("score", CATEGORY, good, "--url", url)
    refused.assert_refused(2, "PLUMBLINE_API_KEY", "line break")
    assert "plumb_key" not in refused.errors
