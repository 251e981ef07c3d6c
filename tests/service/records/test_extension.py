"""A false alarm reviewed good becomes part of the bank of a new version."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from models.densities import DensityConfiguration, GaussianDensityConfiguration, NearestNeighboursConfiguration
from models.store import ModelStore
from tests.service.conftest import Serve
from tests.service.records.support import score
from tests.service.support import CATEGORY, assert_problem, make_detector, wait_until

VERSIONS = f"/v1/categories/{CATEGORY}/versions"


def store_of(folder: Path, density: DensityConfiguration) -> Path:
    ModelStore(folder).publish(CATEGORY, make_detector(density=density).save)
    return folder


@pytest.fixture
def client(serve: Serve, tmp_path: Path) -> Iterator[httpx.Client]:
    models = store_of(tmp_path / "models", NearestNeighboursConfiguration())
    with serve(models, records=tmp_path / "records", threads=1) as started:
        yield started


def alarm(client: httpx.Client, review: str | None = "good", seed: int = 3) -> dict[str, Any]:
    """A part that is taken for defective, its image kept, and what a person says of it."""
    answer: dict[str, Any] = score(client, seed, defective=True).json()
    assert answer["verdict"] == "defective"
    wait_until(lambda: client.get(f"/v1/inspections/{answer['id']}/image").status_code == 200)
    if review is not None:
        judged = client.post(f"/v1/inspections/{answer['id']}/review", json={"verdict": review})
        assert judged.status_code == 201
    return answer


def extend(client: httpx.Client, *ids: Any) -> httpx.Response:
    return client.post(VERSIONS, json={"add_inspections": [str(one) for one in ids]})


def test_a_false_alarm_is_one_no_more(client: httpx.Client, tmp_path: Path) -> None:
    answers = [alarm(client, seed=seed) for seed in (3, 4)]
    made = extend(client, *(answer["id"] for answer in answers))
    assert made.status_code == 201, made.text
    facts = made.json()
    assert (facts["version"], facts["based_on"], facts["images"]) == (2, 1, 2)
    assert score(client, 3, defective=True).json()["verdict"] == "defective"  # not active yet
    listed = client.get(VERSIONS).json()["versions"]
    assert [(one["version"], one["active"]) for one in listed] == [(2, False), (1, True)]
    assert client.post(f"/v1/categories/{CATEGORY}/activate", json={"version": 2}).status_code == 200
    now = score(client, 3, defective=True).json()
    assert (now["version"], now["verdict"]) == (2, "good")
    assert now["threshold"] == facts["operating_point"]["image_threshold"]
    described = client.get(f"/v1/categories/{CATEGORY}").json()["detector"]
    (extension,) = described["training"]["extensions"]
    assert extension["inspections"] == [answer["id"] for answer in answers]
    assert (extension["author"], extension["of_version"]) == ("anonymous", 1)


def test_the_rate_in_force_goes_on(client: httpx.Client) -> None:
    changed = client.put(f"/v1/categories/{CATEGORY}/operation", json={"false_reject_rate": 0.4})
    assert changed.status_code == 200, changed.text
    facts = extend(client, alarm(client)["id"]).json()
    assert facts["operating_point"]["false_reject_rate"] == 0.4


def test_inspections_that_cannot_be_used(client: httpx.Client, tmp_path: Path) -> None:
    nobody = uuid4()
    unseen, bad, unkept = alarm(client, None)["id"], alarm(client, "defective")["id"], score(client).json()["id"]
    assert client.post(f"/v1/inspections/{unkept}/review", json={"verdict": "good"}).status_code == 201
    answer = extend(client, unseen, bad, unkept, nobody, alarm(client)["id"])
    assert_problem(
        answer,
        409,
        "inspections-unusable",
        "4 of 5",
        f"{unseen} has not been reviewed good",
        f"{bad} was last reviewed defective",
        f"{unkept} has no image kept",
        f"{nobody} is not recorded",
    )
    assert ModelStore(tmp_path / "models").versions(CATEGORY) == [1]


@pytest.mark.parametrize("ids", [[], ["7"], [str(uuid4())] * 2, [str(uuid4()) for _ in range(201)]])
def test_wrong_requests(client: httpx.Client, ids: list[str]) -> None:
    assert_problem(extend(client, *ids), 422, "invalid-request", "add_inspections")


def test_a_density_without_a_bank(serve: Serve, tmp_path: Path) -> None:
    models = store_of(tmp_path / "models", GaussianDensityConfiguration())
    with serve(models, records=tmp_path / "records", threads=1) as client:
        assert_problem(extend(client, uuid4()), 409, "not-extendable", "gaussian_density", "train again")


def test_without_records_or_category(serve: Serve, models: Path, client: httpx.Client) -> None:
    with serve(models) as off:
        assert_problem(extend(off, uuid4()), 404, "records-off")
    answer = client.post("/v1/categories/none/versions", json={"add_inspections": [str(uuid4())]})
    assert_problem(answer, 404, "unknown-category", "none")
