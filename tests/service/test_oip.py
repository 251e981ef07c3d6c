"""The Open Inference Protocol, by Triton's own client and, where that cannot err, by plain HTTP."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from models.detector import Detector
from service.keys import create_key
from service.security import Scope
from tests.service.conftest import Serve
from tests.service.support import (
    CATEGORY,
    HEIGHT,
    MAX_UPLOAD_BYTES,
    WIDTH,
    answer_of,
    bomb,
    encode,
    part,
    publish_versions,
    wait_until,
)

INFER = f"/v2/models/{CATEGORY}/infer"
SCALARS = ("score", "threshold", "p_value", "pixel_threshold")


@pytest.fixture
def client_of_triton(client: httpx.Client) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"{client.base_url.host}:{client.base_url.port}") as connected:
        yield connected


def files(*seeds: int) -> NDArray[np.object_]:
    """Image files of parts; those of odd seeds have a hole."""
    return np.array([encode(part(seed, defective=seed % 2 == 1)) for seed in seeds], object)


def tensor(values: NDArray[Any], datatype: str, *, binary: bool = True) -> triton.InferInput:
    sent = triton.InferInput("image", list(values.shape), datatype)
    sent.set_data_from_numpy(values, binary_data=binary)
    return sent


def ask(
    client: httpx.Client, request: dict[str, Any], binary: bytes = b"", headers: dict[str, str] | None = None
) -> httpx.Response:
    text = json.dumps(request).encode()
    lengths = {"inference-header-content-length": str(len(text))} if binary else {}
    return client.post(INFER, content=text + binary, headers=lengths | (headers or {}))


def of_files(*images: bytes, **rest: Any) -> dict[str, Any]:
    data = [base64.b64encode(image).decode() for image in images]
    return {"inputs": [{"name": "image", "shape": [len(images)], "datatype": "BYTES", "data": data}], **rest}


def of_pixels(datatype: str, shape: list[int], data: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "image", "shape": shape, "datatype": datatype, "data": data}]}


def announced(datatype: str, shape: list[int], size: int) -> dict[str, Any]:
    parameters = {"binary_data_size": size}
    return {"inputs": [{"name": "image", "shape": shape, "datatype": datatype, "parameters": parameters}]}


def outputs(response: httpx.Response) -> dict[str, Any]:
    return {output["name"]: output for output in answer_of(response)["outputs"]}


def assert_error(response: httpx.Response, status: int, *mentions: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    answer = response.json()
    assert list(answer) == ["error"]
    for mention in mentions:
        assert mention in answer["error"]


class TestTritonClient:
    def test_health_and_metadata(self, client_of_triton: triton.InferenceServerClient, detector: Detector) -> None:
        assert client_of_triton.is_server_live()
        assert client_of_triton.is_server_ready()
        assert client_of_triton.is_model_ready(CATEGORY)
        assert client_of_triton.is_model_ready(CATEGORY, "1")
        assert not client_of_triton.is_model_ready(CATEGORY, "2")
        assert not client_of_triton.is_model_ready("nothing")
        assert "binary_tensor_data" in client_of_triton.get_server_metadata()["extensions"]
        metadata = client_of_triton.get_model_metadata(CATEGORY, "1")
        assert metadata["name"] == CATEGORY
        assert metadata["versions"] == ["1"]
        assert metadata["inputs"][0] | {"parameters": None} == {
            "name": "image",
            "datatype": "BYTES",
            "shape": [-1],
            "parameters": None,
        }
        side = detector.geometry.image_size
        shapes = {output["name"]: (output["datatype"], output["shape"]) for output in metadata["outputs"]}
        assert shapes["anomaly_map"] == ("FP32", [-1, side, side])
        assert shapes["verdict"] == ("BYTES", [-1])

    def test_every_output_agrees_with_the_detector(
        self, client_of_triton: triton.InferenceServerClient, detector: Detector
    ) -> None:
        answer = client_of_triton.infer(CATEGORY, [tensor(files(100, 101, 102), "BYTES")], request_id="a name")
        expected = [detector.predict([part(seed, defective=seed == 101)])[0] for seed in (100, 101, 102)]
        assert answer.get_response()["id"] == "a name"
        assert answer.get_response()["model_version"] == "1"
        np.testing.assert_allclose(answer.as_numpy("score"), [each.image_score for each in expected], rtol=1e-5)
        np.testing.assert_allclose(answer.as_numpy("p_value"), [each.p_value for each in expected], rtol=1e-6)
        np.testing.assert_allclose(
            answer.as_numpy("anomaly_map"), [each.anomaly_map for each in expected], rtol=1e-3, atol=1e-4
        )
        point = detector.operating_point
        np.testing.assert_allclose(answer.as_numpy("threshold"), [point.image_threshold] * 3, rtol=1e-6)
        np.testing.assert_allclose(answer.as_numpy("pixel_threshold"), [point.pixel_threshold] * 3, rtol=1e-6)
        assert answer.as_numpy("verdict").tolist() == [each.verdict.encode() for each in expected]
        assert answer.as_numpy("verdict")[1] == b"defective"
        assert len(set(answer.as_numpy("inspection_id").tolist())) == 3

    def test_a_file_in_a_column(self, client_of_triton: triton.InferenceServerClient) -> None:
        column = client_of_triton.infer(CATEGORY, [tensor(files(100, 101)[:, None], "BYTES")])
        row = client_of_triton.infer(CATEGORY, [tensor(files(100, 101), "BYTES")])
        assert column.as_numpy("score").tolist() == row.as_numpy("score").tolist()

    @pytest.mark.parametrize("binary", [True, False])
    def test_pixels_score_as_the_file_does(self, client_of_triton: triton.InferenceServerClient, binary: bool) -> None:
        pixels = np.stack([part(101, defective=True), part(102)])[:, ::2, ::2].copy()
        as_files = np.array([encode(image) for image in pixels], object)
        expected = client_of_triton.infer(CATEGORY, [tensor(as_files, "BYTES")]).as_numpy("score").tolist()
        whole = client_of_triton.infer(CATEGORY, [tensor(pixels, "UINT8", binary=binary)])
        assert whole.as_numpy("score").tolist() == expected
        if binary:  # in JSON they take more than the bytes that this server accepts
            fractions = (pixels / 255).astype(np.float32)
            assert client_of_triton.infer(CATEGORY, [tensor(fractions, "FP32")]).as_numpy("score").tolist() == expected

    @pytest.mark.parametrize("binary", [True, False])
    def test_only_what_is_asked_for(self, client_of_triton: triton.InferenceServerClient, binary: bool) -> None:
        wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("verdict", "score")]
        answer = client_of_triton.infer(CATEGORY, [tensor(files(101), "BYTES")], outputs=wanted)
        assert [output["name"] for output in answer.get_response()["outputs"]] == ["verdict", "score"]
        verdict = answer.as_numpy("verdict")[0]
        assert verdict == (b"defective" if binary else "defective")
        assert answer.as_numpy("score") > 0

    @pytest.mark.parametrize("coding", ["gzip", "deflate"])
    def test_compressed(self, client_of_triton: triton.InferenceServerClient, coding: str) -> None:
        answer = client_of_triton.infer(
            CATEGORY,
            [tensor(files(101), "BYTES")],
            request_compression_algorithm=coding,
            response_compression_algorithm=coding,
        )
        assert answer.as_numpy("verdict").tolist() == [b"defective"]

    def test_errors_are_read(self, client_of_triton: triton.InferenceServerClient) -> None:
        with pytest.raises(InferenceServerException, match="there is no category 'nothing'") as unknown:
            client_of_triton.infer("nothing", [tensor(files(100), "BYTES")])
        assert unknown.value.status() == "404"
        broken = np.array([encode(part(0)), b"no image"], object)
        with pytest.raises(InferenceServerException, match="image 1: not an image") as invalid:
            client_of_triton.infer(CATEGORY, [tensor(broken, "BYTES")])
        assert invalid.value.status() == "400"
        with pytest.raises(InferenceServerException, match="there is no"):
            client_of_triton.get_inference_statistics(CATEGORY)

    def test_asyncio(self, client: httpx.Client) -> None:
        async def use() -> None:
            address = f"{client.base_url.host}:{client.base_url.port}"
            async with triton_aio.InferenceServerClient(address) as connected:
                assert await connected.is_server_ready()
                assert await connected.is_model_ready(CATEGORY)
                inputs = [[tensor(files(seed), "BYTES")] for seed in (100, 101)]
                answers = await asyncio.gather(
                    *(connected.infer(CATEGORY, each, request_compression_algorithm="gzip") for each in inputs)
                )
                assert [answer.as_numpy("verdict")[0] for answer in answers] == [b"good", b"defective"]
                with pytest.raises(InferenceServerException, match="has no version 9; there is 1"):
                    await connected.infer(CATEGORY, inputs[0], model_version="9")

        asyncio.run(use())


class TestJson:
    def test_all_in_json(self, client: httpx.Client, detector: Detector) -> None:
        given = outputs(ask(client, of_files(encode(part(101, defective=True)), id="naïve")))
        (expected,) = detector.predict([part(101, defective=True)])
        assert given["verdict"] == {"name": "verdict", "shape": [1], "datatype": "BYTES", "data": ["defective"]}
        assert given["score"]["data"][0] == pytest.approx(expected.image_score, rel=1e-5)
        side = detector.geometry.image_size
        assert given["anomaly_map"]["shape"] == [1, side, side]
        assert len(given["anomaly_map"]["data"]) == side * side

    def test_one_output_in_binary(self, client: httpx.Client) -> None:
        wanted = [{"name": "verdict"}, {"name": "score", "parameters": {"binary_data": True}}]
        response = ask(client, of_files(encode(part(100)), outputs=wanted))
        length = int(response.headers["inference-header-content-length"])
        head = json.loads(response.content[:length])
        assert head["outputs"][0]["data"] == ["good"]
        assert head["outputs"][1]["parameters"] == {"binary_data_size": 4}
        assert struct.unpack("<f", response.content[length:])[0] == pytest.approx(
            outputs(ask(client, of_files(encode(part(100)))))["score"]["data"][0], rel=1e-6
        )

    def test_the_inspection_has_the_requests_id(self, client: httpx.Client) -> None:
        response = ask(client, of_files(encode(part(100))))
        assert outputs(response)["inspection_id"]["data"] == [response.headers["x-plumbline-id"]]


FLAT = [0] * (WIDTH * HEIGHT * 3)
GOOD = struct.pack("<I", len(encode(part(0)))) + encode(part(0))


class TestBadRequest:
    @pytest.fixture(autouse=True)
    def still_serving(self, client: httpx.Client) -> Iterator[None]:
        yield
        assert outputs(ask(client, of_files(encode(part(0)))))["verdict"]["data"] == ["good"]

    @pytest.mark.parametrize(
        ("body", "mention"),
        [
            (b"", "JSON cannot be read"),
            (b"{", "JSON cannot be read"),
            (b"[" * 100_000, "JSON cannot be read"),
            (b"\xff\xfe", "JSON cannot be read"),
            (b'{"inputs": ' + b"9" * 5000 + b"}", "JSON cannot be read"),
            (b"[]", "the request: "),
            (b"{}", "inputs: Field required"),
            (b'{"inputs": []}', "send exactly one, 'image'"),
            (b'{"inputs": [{"name": "image", "shape": [1.5], "datatype": "BYTES"}]}', "inputs.0.shape.0"),
            (b'{"inputs": [{"name": "image", "shape": [-1], "datatype": "BYTES"}]}', "inputs.0.shape.0"),
            (b'{"id": 1, "inputs": []}', "id: "),
        ],
    )
    def test_no_request(self, client: httpx.Client, body: bytes, mention: str) -> None:
        assert_error(client.post(INFER, content=body), 400, mention)

    @pytest.mark.parametrize(
        ("request_", "mention"),
        [
            (of_pixels("INT64", [1], [1]), "datatype 'INT64'; accepted are BYTES, UINT8 and FP32"),
            (of_pixels("BYTES", [1, 2], ["", ""]), "shape [1, 2]"),
            (of_pixels("BYTES", [2], ["YQ=="]), "has 1 elements"),
            (of_pixels("BYTES", [1], ["?"]), "base64"),
            (of_pixels("BYTES", [1], [1]), "base64"),
            (of_pixels("BYTES", [0], []), "holds 0 images"),
            (of_pixels("BYTES", [65], ["YQ=="] * 65), "holds 65 images; accepted are 1 to 64"),
            (of_pixels("UINT8", [HEIGHT, WIDTH, 3], FLAT), "accepted is [n, height, width, 3]"),
            (of_pixels("UINT8", [1, HEIGHT, WIDTH, 4], FLAT), "accepted is [n, height, width, 3]"),
            (of_pixels("UINT8", [1, HEIGHT, WIDTH, 3], FLAT[1:]), "do not fill its shape"),
            (of_pixels("UINT8", [1, 1, 2, 3], [1, 2, 3, 4, 5, 256]), "values from 1 to 256"),
            (of_pixels("UINT8", [1, 1, 2, 3], [1, 2, 3, 4, 5, 0.5]), "whole numbers"),
            (of_pixels("UINT8", [1, 1, 1, 3], [1, 2, "red"]), "not an array of numbers"),
            (of_pixels("UINT8", [1, 1, 1, 3], [[1], 2, 3]), "not an array of numbers"),
            (of_pixels("UINT8", [1, 1, 1, 3], {}), "not an array of numbers"),
            (of_pixels("UINT8", [1, 1, 1, 3], ["1", "2", "3"]), "not an array of numbers"),
            (of_pixels("UINT8", [1, 1, 1, 3], [True, False, True]), "not an array of numbers"),
            (of_pixels("UINT8", [1, 1, 2, 3], [[[[1, 2, 3]], [[4, 5, 6]]]]), "nested as [1, 2, 1, 3]"),
            (of_pixels("FP32", [1, 1, 1, 3], [0, 1, 1.01]), "finite numbers in [0, 1]"),
            (of_pixels("FP32", [1, 1, 1, 3], [0, 1, float("nan")]), "finite numbers in [0, 1]"),
            (of_pixels("FP32", [1, 1, 1, 3], [0, 1, None]), "finite numbers in [0, 1]"),
            (of_pixels("FP32", [1, 1, 1, 3], [10**400, 1, 1]), "not an array of numbers"),
            (of_pixels("UINT8", [1, 0, 0, 3], []), "accepted is [n, height, width, 3]"),
            (of_pixels("UINT8", [1, 1, 100_000, 3], []), "a side has at most 65535"),
            (announced("UINT8", [1, 1, 1, 3], 3), "0 bytes follow the JSON, where 3 are announced"),
            (of_files(b"", outputs=[{"name": "mood"}]), "there is no output 'mood'; there is score"),
            (of_files(b"", outputs=[{"name": "score"}] * 2), "asked for twice"),
            (of_files(b"", outputs=[{"name": "score", "parameters": {"classification": 3}}]), "classification"),
            (of_files(b"", parameters={"part": "\n"}), "parameters.part"),
            (of_files(b"", id="\ud800"), "id: "),
            (of_files(b"no image"), "not an image"),
            (of_files(b""), "the file is empty"),
        ],
    )
    def test_not_valid(self, client: httpx.Client, request_: dict[str, Any], mention: str) -> None:
        assert_error(ask(client, request_), 400, mention)

    @pytest.mark.parametrize(
        ("request_", "binary", "mention"),
        [
            (announced("BYTES", [1], len(GOOD) - 1), GOOD[:-1], f"{len(GOOD) - 4} bytes, {len(GOOD) - 5} are left"),
            (announced("BYTES", [1], len(GOOD) + 3), GOOD + b"abc", "do not end where"),
            (announced("BYTES", [2], len(GOOD)), GOOD, "has 1 elements"),
            (announced("BYTES", [1], len(GOOD)), GOOD + b"a", "are announced"),
            (announced("UINT8", [1, 1, 1, 3], 4), b"abcd", "of shape [1, 1, 1, 3] has 3"),
            (announced("FP32", [1, 1, 1, 3], 12), struct.pack("<3f", 0, 1, float("inf")), "finite"),
            (of_files(b"a"), b"abcd", "4 bytes follow"),
        ],
    )
    def test_binary_not_valid(
        self, client: httpx.Client, request_: dict[str, Any], binary: bytes, mention: str
    ) -> None:
        assert_error(ask(client, request_, binary), 400, mention)

    @pytest.mark.parametrize("length", ["", "-1", "many", "1e3", "9" * 30, "100000"])
    def test_length_of_the_json(self, client: httpx.Client, length: str) -> None:
        headers = {"inference-header-content-length": length}
        assert_error(ask(client, of_files(b"a"), headers=headers), 400, "Inference-Header-Content-Length is")

    @pytest.mark.parametrize("coding", ["gzip", "deflate"])
    def test_compressed_wrongly(self, client: httpx.Client, coding: str) -> None:
        compress = gzip.compress if coding == "gzip" else zlib.compress
        headers = {"content-encoding": coding}
        whole = compress(json.dumps(of_files(b"a")).encode())
        for body, mention in (
            (b"plain", f"not {coding} data"),
            (whole[:-6], "cut off"),
            (whole + b"a", "behind its end"),
        ):
            assert_error(client.post(INFER, content=body, headers=headers), 400, mention)
        large = compress(b" " * (MAX_UPLOAD_BYTES + 1))
        assert len(large) < 10_000
        assert_error(client.post(INFER, content=large, headers=headers), 413, str(MAX_UPLOAD_BYTES))

    def test_unknown_coding(self, client: httpx.Client) -> None:
        assert_error(ask(client, of_files(b"a"), headers={"content-encoding": "br"}), 415, "'br'", "gzip or deflate")

    def test_too_large(self, client: httpx.Client) -> None:
        assert_error(client.post(INFER, content=b" " * (MAX_UPLOAD_BYTES + 1)), 413, str(MAX_UPLOAD_BYTES))
        assert_error(ask(client, of_files(bomb(60_000, 60_000))), 413, "60000x60000")
        assert_error(ask(client, of_pixels("UINT8", [1, 2000, 2000, 3], [])), 413, "2000x2000")

    def test_not_an_accepted_format(self, client: httpx.Client) -> None:
        assert_error(ask(client, of_files(encode(part(0), "GIF"))), 415, "GIF")

    @pytest.mark.parametrize("path", ["/v2/models/nothing", "/v2/models/..%2f..", f"/v2/models/{CATEGORY}/versions/x"])
    def test_unknown_model(self, client: httpx.Client, path: str) -> None:
        for response in (client.get(path), client.get(f"{path}/ready"), client.post(f"{path}/infer", content=b"{}")):
            assert_error(response, 404, "there is no" if CATEGORY not in path else "no version 'x'")

    def test_unknown_address(self, client: httpx.Client) -> None:
        assert_error(client.get("/v2/nothing"), 404, "/v2/nothing")
        assert_error(client.get(INFER), 405, "POST")


@pytest.fixture
def two_versions(tmp_path: Path, detectors: list[Detector]) -> Path:
    """Version 1 of two is active."""
    return publish_versions(tmp_path, detectors[:2]).root


class TestRepository:
    def test_versions_are_loaded_and_unloaded(self, serve: Serve, two_versions: Path) -> None:
        with serve(two_versions) as http, triton.InferenceServerClient(http.base_url.netloc.decode()) as client:

            def states() -> dict[str, str]:
                return {model["version"]: model["state"] for model in client.get_model_repository_index()}

            def change(verb: str, **parameters: Any) -> httpx.Response:
                response: httpx.Response = http.post(
                    f"/v2/repository/models/{CATEGORY}/{verb}", json={"parameters": parameters}
                )
                return response

            assert states() == {"1": "READY", "2": "UNAVAILABLE"}
            assert client.get_model_metadata(CATEGORY)["versions"] == ["2", "1"]
            assert change("load", version=2).json() == {}
            assert states() == {"1": "READY", "2": "READY"}
            assert_error(change("unload", version=1), 409, "is active or the shadow")
            client.unload_model(CATEGORY, unload_dependents=True)
            assert states() == {"1": "READY", "2": "UNAVAILABLE"}
            ready = http.post("/v2/repository/index", json={"ready": True}).json()
            assert [model["version"] for model in ready] == ["1"]
            client.load_model(CATEGORY)
            scores = [
                client.infer(CATEGORY, [tensor(files(101), "BYTES")], model_version=version).as_numpy("score")[0]
                for version in ("", "1", "2")
            ]
            assert scores[0] == scores[1] != scores[2]
            assert states() == {"1": "READY", "2": "READY"}

    def test_what_is_refused(self, client: httpx.Client, client_of_triton: triton.InferenceServerClient) -> None:
        with pytest.raises(InferenceServerException, match=r"parameters\.config: Extra inputs are not permitted"):
            client_of_triton.load_model(CATEGORY, config="{}")
        with pytest.raises(InferenceServerException, match="there is no category 'nothing'"):
            client_of_triton.load_model("nothing")
        with pytest.raises(InferenceServerException, match="there is no category 'nothing'"):
            client_of_triton.unload_model("nothing")
        load = f"/v2/repository/models/{CATEGORY}/load"
        assert_error(client.post(load, json={"parameters": {"version": 9}}), 404, "no version 9")
        for body in (b"{", b"[]", b'{"parameters": {"version": 0}}', b"\xff", b"[" * 10_000):
            assert_error(client.post(load, content=body), 400)
        assert_error(client.post(load, content=b" " * 70_000), 413, "65536")


def test_keys(serve: Serve, models: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    key = create_key(file, "station 1", (Scope.SCORE,))[1]
    with (
        serve(models, keys=file) as http,
        triton.InferenceServerClient(f"{http.base_url.host}:{http.base_url.port}") as client,
    ):
        assert client.is_server_ready()
        assert not client.is_model_ready(CATEGORY)
        with pytest.raises(InferenceServerException, match="the request has no key") as refused:
            client.infer(CATEGORY, [tensor(files(101), "BYTES")])
        assert refused.value.status() == "401"
        headers = {"Authorization": f"Bearer {key}"}
        assert client.is_model_ready(CATEGORY, headers=headers)
        answer = client.infer(CATEGORY, [tensor(files(101), "BYTES")], headers=headers)
        assert answer.as_numpy("verdict").tolist() == [b"defective"]


def test_the_document_shows_errors_as_they_are(client: httpx.Client) -> None:
    operation = client.get("/openapi.json").json()["paths"]["/v2/models/{model}/infer"]["post"]
    errors = {status: answer["content"] for status, answer in operation["responses"].items() if int(status) >= 400}
    assert errors.keys() == {"400", "401", "403", "404", "408", "409", "413", "415", "421", "429", "500", "503", "504"}
    schema = {"$ref": "#/components/schemas/InferenceError"}
    assert all(content == {"application/json": {"schema": schema}} for content in errors.values())


def test_images_that_wait_count_as_held(serve: Serve, models: Path) -> None:
    with serve(models, queue_bytes=500_000) as client:
        response = ask(client, of_files(*[encode(part(100))] * 12))
        assert_error(response, 503, "500000 bytes")
        assert int(response.headers["retry-after"]) >= 1
        wait_until(lambda: ask(client, of_files(encode(part(100)))).status_code == 200)


def test_loading(serve: Serve, tmp_path: Any) -> None:
    """A store without models: the server lives, is not ready, and says so as the protocol does."""
    with serve(tmp_path) as client:
        assert client.get("/v2/health/live").json() == {"live": True}
        response = client.get("/v2/health/ready")
        assert (response.status_code, response.json()) == (503, {"ready": False})
        assert_error(client.get("/v2/models/a/ready"), 404, "there is no category 'a'")
