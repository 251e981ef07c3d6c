"""Amazon Lookout for Vision's API, by boto3."""

from __future__ import annotations

import gzip
import io
import shutil
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import httpx
import numpy as np
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from PIL import Image

from models.detector import Detector
from models.prediction import Prediction, Verdict
from models.store import ModelStore
from service.api.lookout import confidence
from tests.service.conftest import Serve
from tests.service.support import (
    CATEGORY,
    DEFECT,
    HEIGHT,
    MAX_UPLOAD_BYTES,
    WIDTH,
    encode,
    held_worker,
    make_detector,
    metric,
    part,
    publish_versions,
    wait_until,
)

DETECT = f"/2020-11-20/projects/{CATEGORY}/models/1/detect"


def connect(url: httpx.URL) -> Any:
    return boto3.client(
        "lookoutvision",
        endpoint_url=str(url),
        region_name="eu-central-1",
        aws_access_key_id="AKIDEXAMPLE",
        aws_secret_access_key="secret",
        config=Config(retries={"total_max_attempts": 1}),
    )


@pytest.fixture(scope="module")
def lookout(client: httpx.Client) -> Any:
    return connect(client.base_url)


def detect(lookout: Any, image: Any, version: str = "1", project: str = CATEGORY, kind: str = "image/png") -> Any:
    answer = lookout.detect_anomalies(ProjectName=project, ModelVersion=version, Body=image, ContentType=kind)
    return answer["DetectAnomalyResult"]


def assert_refused(error: pytest.ExceptionInfo[ClientError], name: str, status: int, *mentions: str) -> dict[str, Any]:
    response: dict[str, Any] = error.value.response
    assert response["Error"]["Code"] == name
    assert response["ResponseMetadata"]["HTTPStatusCode"] == status
    assert response["ResponseMetadata"]["RequestId"]
    for mention in mentions:
        assert mention in response["Error"]["Message"]
    return response


class TestDetect:
    def test_defective(self, lookout: Any, detector: Detector) -> None:
        image = part(101, defective=True)
        result = detect(lookout, encode(image))
        (expected,) = detector.predict([image])
        assert result["Source"] == {"Type": "direct"}
        assert result["IsAnomalous"] is True
        assert result["Confidence"] == pytest.approx(1 - expected.p_value)
        shares = {each["Name"]: each["PixelAnomaly"] for each in result["Anomalies"]}
        assert shares.keys() == {"background", "anomaly"}
        mask = Image.open(io.BytesIO(result["AnomalyMask"])).convert("RGB")
        assert mask.size == (WIDTH, HEIGHT)
        pixels, counts = np.unique(np.asarray(mask).reshape(-1, 3), axis=0, return_counts=True)
        colours = {f"#{bytes(pixel).hex().upper()}": count for pixel, count in zip(pixels, counts, strict=True)}
        assert colours.keys() == {shares["background"]["Color"], shares["anomaly"]["Color"]}
        for share in shares.values():
            assert colours[share["Color"]] / (WIDTH * HEIGHT) == pytest.approx(share["TotalPercentageArea"])
        assert colours[shares["anomaly"]["Color"]] == sum(region.area for region in expected.regions)
        x, y = DEFECT.x + DEFECT.width // 2, DEFECT.y + DEFECT.height // 2
        assert mask.getpixel((x, y)) != mask.getpixel((5, 5)) == (255, 255, 255)

    def test_good(self, lookout: Any, detector: Detector) -> None:
        result = detect(lookout, encode(part(100)))
        (expected,) = detector.predict([part(100)])
        assert result["IsAnomalous"] is False
        assert 0.5 <= result["Confidence"] < 1
        rate = detector.operating_point.false_reject_rate
        assert result["Confidence"] == pytest.approx(expected.p_value / (expected.p_value + rate))

    def test_what_is_not_the_product_is_anomalous(self, lookout: Any) -> None:
        result = detect(lookout, encode(np.zeros((HEIGHT, WIDTH, 3), np.uint8)))
        assert result["IsAnomalous"] is True
        assert result["Confidence"] > 0.5

    def test_jpeg_stream_of_the_latest_version(self, lookout: Any) -> None:
        stream = io.BytesIO(encode(part(101, defective=True), "JPEG", quality=95))
        assert detect(lookout, stream, "latest", kind="image/jpeg")["IsAnomalous"] is True

    def test_mask_lies_over_the_image_as_displayed(self, lookout: Any) -> None:
        turned = Image.fromarray(part(101, defective=True)).transpose(Image.Transpose.ROTATE_90)
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned back by 90 degrees
        buffer = io.BytesIO()
        turned.save(buffer, "PNG", exif=exif)
        mask = Image.open(io.BytesIO(detect(lookout, buffer.getvalue())["AnomalyMask"]))
        assert mask.size == (WIDTH, HEIGHT)

    def test_review_is_anomalous(self, serve: Serve, tmp_path: Path) -> None:
        detector = make_detector()
        (prediction,) = detector.predict([part(100)])
        score = prediction.image_score
        detector.operating_point = detector.operating_point.model_copy(
            update={"image_threshold": score, "review_band": (score - 1, score + 1)}
        )
        ModelStore(tmp_path).publish(CATEGORY, detector.save)
        with serve(tmp_path) as client:
            assert detect(connect(client.base_url), encode(part(100)))["IsAnomalous"] is True


def test_confidence_is_least_at_the_threshold() -> None:
    def of(p_value: float, verdict: Verdict, invalidity: float | None = None) -> float:
        empty = np.zeros((1, 1), np.float32)
        return confidence(Prediction(empty, 0.0, 0.0, empty, None, p_value, verdict, (), invalidity), 0.01)  # type: ignore[arg-type]

    good = [of(p_value, Verdict.GOOD) for p_value in (0.01, 0.1, 0.5, 1)]
    assert good[0] == 0.5
    assert good == sorted(good)
    assert good[-1] < 1
    unlike = [of(1, Verdict.INVALID, invalidity) for invalidity in (1.0, 2.0, 100.0)]
    assert unlike == [0.5, 0.75, 0.995]
    assert of(0.002, Verdict.DEFECTIVE) == 0.998


class TestRefused:
    @pytest.mark.parametrize(
        ("body", "kind", "mention"),
        [
            (b"no image", "image/png", "not an image"),
            (b"", "image/png", "empty"),
            (encode(part(0), "GIF"), "image/png", "GIF"),
            (encode(part(0)), "text/plain", "'text/plain'"),
            (b" " * (MAX_UPLOAD_BYTES + 1), "image/png", str(MAX_UPLOAD_BYTES)),
        ],
    )
    def test_image(self, lookout: Any, body: bytes, kind: str, mention: str) -> None:
        with pytest.raises(lookout.exceptions.ValidationException) as error:
            detect(lookout, body, kind=kind)
        assert_refused(error, "ValidationException", 400, mention)

    def test_a_compressed_body_is_refused_as_such(self, client: httpx.Client) -> None:
        """Not as an image that cannot be read."""
        headers = {"content-type": "image/png", "content-encoding": "gzip"}
        response = client.post(DETECT, content=gzip.compress(encode(part(0))), headers=headers)
        assert (response.status_code, response.headers["x-amzn-errortype"]) == (400, "ValidationException")
        assert "content encoding 'gzip' is not accepted" in response.json()["Message"]

    def test_unknown_project(self, lookout: Any) -> None:
        with pytest.raises(lookout.exceptions.ResourceNotFoundException) as error:
            detect(lookout, encode(part(0)), project="nothing")
        response = assert_refused(error, "ResourceNotFoundException", 404, "no category 'nothing'")
        assert (response["ResourceType"], response["ResourceId"]) == ("PROJECT", "nothing")

    def test_unknown_version(self, lookout: Any) -> None:
        with pytest.raises(lookout.exceptions.ResourceNotFoundException) as error:
            detect(lookout, encode(part(0)), "7")
        assert_refused(error, "ResourceNotFoundException", 404, "7")

    @pytest.mark.parametrize("path", [DETECT.replace("/1/", "/first/"), DETECT.replace(CATEGORY, "a.b")])
    def test_names_that_are_none(self, client: httpx.Client, path: str) -> None:
        response = client.post(path, content=encode(part(0)), headers={"content-type": "image/png"})
        assert (response.status_code, response.headers["x-amzn-errortype"]) == (400, "ValidationException")
        assert "Message" in response.json()

    def test_full_queue(self, serve: Serve, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with serve(models, queue_size=1) as client, ThreadPoolExecutor(2) as pool, held_worker(monkeypatch) as gate:
            lookout = connect(client.base_url)
            first = pool.submit(detect, connect(client.base_url), encode(part(100)))
            assert gate.entered.wait(60)
            second = pool.submit(detect, connect(client.base_url), encode(part(100)))
            wait_until(lambda: metric(client, "plumbline_queue_depth") == 1)
            with pytest.raises(lookout.exceptions.ThrottlingException) as error:
                detect(lookout, encode(part(100)))
            response = assert_refused(error, "ThrottlingException", 429, "waiting")
            assert response["RetryAfterSeconds"] >= 1
            gate.open.set()
            assert not first.result()["IsAnomalous"]
            assert not second.result()["IsAnomalous"]

    def test_model_that_is_not_running(self, serve: Serve, models: Path, tmp_path: Path) -> None:
        shutil.copytree(models / CATEGORY, tmp_path / CATEGORY)
        weights = tmp_path / CATEGORY / "versions" / "1" / "encoder.safetensors"
        weights.chmod(0o600)
        weights.write_bytes(b"corrupt")
        with serve(tmp_path) as client:
            lookout = connect(client.base_url)
            with pytest.raises(lookout.exceptions.ConflictException) as error:
                detect(lookout, encode(part(0)))
            assert_refused(error, "ConflictException", 409, "could not be loaded")


class TestRegistry:
    def test_projects(self, lookout: Any) -> None:
        (project,) = lookout.list_projects()["Projects"]
        assert project["ProjectName"] == CATEGORY
        described = lookout.describe_project(ProjectName=CATEGORY)["ProjectDescription"]
        assert described == project | {"Datasets": []}

    def test_pages(self, serve: Serve, models: Path, tmp_path: Path) -> None:
        for name in ("cap", "bottle", "pill"):
            shutil.copytree(models / CATEGORY, tmp_path / name)
        with serve(tmp_path, loaded=False) as client:
            paginator = connect(client.base_url).get_paginator("list_projects")
            pages = list(paginator.paginate(PaginationConfig={"PageSize": 2}))
            names = [[project["ProjectName"] for project in page["Projects"]] for page in pages]
            assert names == [["bottle", "cap"], ["pill"]]

    def test_models(self, lookout: Any) -> None:
        (model,) = lookout.list_models(ProjectName=CATEGORY)["Models"]
        assert (model["ModelVersion"], model["Status"]) == ("1", "HOSTED")
        assert lookout.describe_model(ProjectName=CATEGORY, ModelVersion="1")["ModelDescription"] == model

    def test_start_and_stop(self, serve: Serve, tmp_path: Path, detectors: list[Detector]) -> None:
        with serve(publish_versions(tmp_path, detectors[:2]).root) as client:
            lookout = connect(client.base_url)

            def states() -> dict[str, str]:
                pages = lookout.get_paginator("list_models").paginate(
                    ProjectName=CATEGORY, PaginationConfig={"PageSize": 1}
                )
                return {model["ModelVersion"]: model["Status"] for page in pages for model in page["Models"]}

            assert states() == {"2": "TRAINED", "1": "HOSTED"}
            started = lookout.start_model(ProjectName=CATEGORY, ModelVersion="2", MinInferenceUnits=1)
            assert started["Status"] == "HOSTED"
            assert states() == {"2": "HOSTED", "1": "HOSTED"}
            stopped = lookout.stop_model(ProjectName=CATEGORY, ModelVersion="2")
            assert stopped["Status"] == "STOPPING_HOSTING"
            assert states() == {"2": "TRAINED", "1": "HOSTED"}
            for version in ("1", "latest"):
                with pytest.raises(lookout.exceptions.ConflictException) as error:
                    lookout.stop_model(ProjectName=CATEGORY, ModelVersion=version)
                response = assert_refused(error, "ConflictException", 409, "is active or the shadow")
                assert (response["ResourceType"], response["ResourceId"]) == ("MODEL", f"{CATEGORY}/{version}")
            with pytest.raises(lookout.exceptions.ResourceNotFoundException):
                lookout.start_model(ProjectName=CATEGORY, ModelVersion="9", MinInferenceUnits=1)
            latest = lookout.describe_model(ProjectName=CATEGORY, ModelVersion="latest")["ModelDescription"]
            assert latest["ModelVersion"] == "1"
            assert latest["CreationTimestamp"] <= datetime.now(UTC)

    @pytest.mark.parametrize(
        ("operation", "arguments"),
        [
            ("create_project", {"ProjectName": "new"}),
            ("delete_project", {"ProjectName": CATEGORY}),
            ("create_dataset", {"ProjectName": CATEGORY, "DatasetType": "train"}),
            ("describe_dataset", {"ProjectName": CATEGORY, "DatasetType": "train"}),
            ("list_dataset_entries", {"ProjectName": CATEGORY, "DatasetType": "train"}),
            ("delete_model", {"ProjectName": CATEGORY, "ModelVersion": "1"}),
            ("list_model_packaging_jobs", {"ProjectName": CATEGORY}),
            ("list_tags_for_resource", {"ResourceArn": "arn:plumbline:lookoutvision:local:000000000000:model/a/1"}),
        ],
    )
    def test_what_is_not_supported_says_so(self, lookout: Any, operation: str, arguments: dict[str, str]) -> None:
        with pytest.raises(lookout.exceptions.ValidationException) as error:
            getattr(lookout, operation)(**arguments)
        assert_refused(error, "ValidationException", 400, "is not supported", "plumbline train")


def test_the_document_shows_errors_as_they_are(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    operation = paths["/2020-11-20/projects/{projectName}/models/{modelVersion}/detect"]["post"]
    errors = {status: answer["content"] for status, answer in operation["responses"].items() if int(status) >= 400}
    assert errors.keys() == {"400", "403", "404", "409", "429", "500"}
    schema = {"$ref": "#/components/schemas/LookoutError"}
    assert all(content == {"application/json": {"schema": schema}} for content in errors.values())
