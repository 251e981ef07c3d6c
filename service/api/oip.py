"""Open Inference Protocol v2, as KServe and Triton speak it: a category is a model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from typing import Any
from uuid import UUID, uuid4

import numpy as np
from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from models.prediction import Prediction
from service.admission import INSPECTION_PROBLEMS, admit, held
from service.api.health import healthz, readyz
from service.errors import (
    INVALID_REQUEST,
    UNSUPPORTED_MEDIA_TYPE,
    UPLOAD_TIMEOUT,
    UPLOAD_TOO_LARGE,
    WORKER_UNAVAILABLE,
    ErrorShape,
    ProblemError,
    ProblemKind,
    quote,
)
from service.inspection import Submission, in_pool, inspect, service_of, timed
from service.oip_codec import (
    BYTES,
    FP32,
    HEADER_LENGTH,
    INPUT,
    MAX_IMAGES,
    UINT8,
    InferRequest,
    Tensor,
    as_file,
    decompress,
    parse,
    render,
    size,
)
from service.registry import SERVED_PROBLEMS, Served, version_number
from service.security import Scope, requires
from service.submissions import set_deadline, unless_client_leaves
from service.uploads import read_body

PREFIX = "/v2"
PLATFORM = "plumbline"

# Images of one request that are in the service at a time: enough to fill a batch, too few to fill the queue.
_AT_ONCE = 8

_CODINGS = ("gzip", "deflate")


class InferenceError(BaseModel):
    """What every failure below /v2 answers with."""

    error: str = Field(description="what is wrong, what is accepted, what to do")


class _Errors(ErrorShape):
    """Problems in the protocol's shape, which knows one status for every request that is not valid."""

    schema = InferenceError

    def status(self, kind: ProblemKind) -> int:
        return 400 if kind.status == INVALID_REQUEST.status else kind.status

    def answer(self, request: Request, kind: ProblemKind, detail: str, headers: Mapping[str, str]) -> Response:
        return JSONResponse({"error": detail}, self.status(kind), headers)


ERRORS = _Errors()

server = APIRouter(prefix=PREFIX, tags=["open inference protocol"])
models = APIRouter(
    prefix=f"{PREFIX}/models/{{model}}",
    tags=["open inference protocol"],
    dependencies=[Depends(requires(Scope.SCORE))],  # to ask for a version may load it
)


class ServerMetadata(BaseModel):
    name: str
    version: str
    extensions: list[str]


class Live(BaseModel):
    live: bool


class Ready(BaseModel):
    ready: bool


class ModelReady(Ready):
    name: str


class TensorMetadata(BaseModel):
    """A tensor; -1 in its shape is any size."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] | None = Field(default=None, description="what the datatype does not say")


class ModelMetadata(BaseModel):
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class OutputTensor(BaseModel):
    name: str
    shape: list[int]
    datatype: str
    data: list[Any] | None = Field(default=None, description="row by row; not there where it comes in binary")
    parameters: dict[str, Any] | None = None


class InferResponse(BaseModel):
    """Also the JSON before the tensors of a binary answer."""

    model_config = ConfigDict(protected_namespaces=())

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[OutputTensor]


@server.get("", responses=ERRORS.responses())
async def server_metadata() -> ServerMetadata:
    """What this server is."""
    extensions = ["binary_tensor_data", "model_repository"]
    return ServerMetadata(name=PLATFORM, version=metadata.version("plumbline"), extensions=extensions)


@server.get("/health/live", responses={503: {"model": Live}})
async def live(request: Request, response: Response) -> Live:
    """As /healthz."""
    return Live(live=(await healthz(request, response)).healthy)


@server.get("/health/ready", responses={503: {"model": Ready}})
async def ready(request: Request, response: Response) -> Ready:
    """As /readyz."""
    return Ready(ready=(await readyz(request, response)).ready)


_MODEL_PROBLEMS = ERRORS.responses(*SERVED_PROBLEMS)


@models.get("", responses=_MODEL_PROBLEMS, response_model_exclude_none=True)
@models.get("/versions/{version}", responses=_MODEL_PROBLEMS, response_model_exclude_none=True)
async def model_metadata(model: str, request: Request, version: str | None = None) -> ModelMetadata:
    """The tensors that a model takes and gives."""
    registry = service_of(request).registry
    served = await registry.served(model, _number(version))
    side = served.detector.geometry.image_size
    return ModelMetadata(
        name=model,
        versions=[str(facts.version) for facts in await registry.versions(model)],
        platform=PLATFORM,
        inputs=[_INPUT],
        outputs=[
            TensorMetadata(name=name, datatype=datatype, shape=[-1, side, side] if name == "anomaly_map" else [-1])
            for name, datatype in _OUTPUTS.items()
        ],
    )


@models.get("/ready", responses=_MODEL_PROBLEMS)
@models.get("/versions/{version}/ready", responses=_MODEL_PROBLEMS)
async def model_ready(model: str, request: Request, version: str | None = None) -> ModelReady:
    """200 where the model can score now."""
    service = service_of(request)
    await service.registry.served(model, _number(version))
    if (failure := service.worker.failure()) is not None:
        raise ProblemError(WORKER_UNAVAILABLE, failure)
    return ModelReady(name=model, ready=True)


_INPUT = TensorMetadata(
    name=INPUT,
    datatype=BYTES,
    shape=[-1],
    parameters={
        "content": "image files, PNG, JPEG, BMP, TIFF or WebP; in JSON as base64",
        "most_images": MAX_IMAGES,
        "also_accepted": [
            {"datatype": UINT8, "shape": [-1, -1, -1, 3], "content": "n, height, width, RGB"},
            {"datatype": FP32, "shape": [-1, -1, -1, 3], "content": "as UINT8, in [0, 1], rounded to 8 bits"},
        ],
    },
)
_OUTPUTS = {
    "score": FP32,
    "threshold": FP32,
    "p_value": FP32,
    "verdict": BYTES,
    "anomaly_map": FP32,
    "pixel_threshold": FP32,
    "inspection_id": BYTES,
}
_BODY = {
    "requestBody": {
        "required": True,
        "description": f"The request's JSON; with the header {HEADER_LENGTH}, that many bytes of JSON and then the "
        "tensor. Content-Encoding gzip and deflate are accepted.",
        "content": {
            "application/json": {"schema": {"type": "object"}},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
_INFER: dict[str, Any] = {
    "responses": {
        200: {"model": InferResponse, "content": {"application/octet-stream": {}}},
        **ERRORS.responses(
            UPLOAD_TIMEOUT,
            UPLOAD_TOO_LARGE,
            UNSUPPORTED_MEDIA_TYPE,
            INVALID_REQUEST,
            *INSPECTION_PROBLEMS,
        ),
    },
    "openapi_extra": _BODY,
    "dependencies": [Depends(set_deadline)],
}


@models.post("/infer", **_INFER)
@models.post("/versions/{version}/infer", **_INFER)
async def infer(model: str, request: Request, version: str | None = None) -> Response:
    """Score images, each as an inspection of its own; the request fails as a whole where one of them does.

    Request parameters `part` and `lot` go into the records of all its images.
    """
    seconds, service = dict[str, float](), service_of(request)
    served = await admit(service, model, _number(version), deadline=request.state.deadline)
    request.state.log.update(category=model, version=served.version)
    with timed(seconds, "upload"):
        asked = await _read(request)
    with held(service, sum(map(size, asked.images[_AT_ONCE:]))):
        results = await unless_client_leaves(request, _inspect_all(request, served, asked, seconds))
    request.state.log.update(images=len(results))
    head = {"model_name": model, "model_version": str(served.version)} | ({} if asked.id is None else {"id": asked.id})
    body, length = await in_pool(service, lambda: render(head, _tensors(served, results), asked.outputs))
    if length == len(body):
        return Response(body, media_type="application/json")
    return Response(body, media_type="application/octet-stream", headers={HEADER_LENGTH: str(length)})


def _number(version: str | None) -> int | None:
    return None if version is None else version_number(version)


async def _read(request: Request) -> InferRequest:
    service = service_of(request)
    settings = service.settings
    coding = request.headers.get("content-encoding", "identity").lower()
    if coding != "identity" and coding not in _CODINGS:
        detail = f"content encoding {quote(coding)} is not accepted; send it plain, or as {' or '.join(_CODINGS)}"
        raise ProblemError(UNSUPPORTED_MEDIA_TYPE, detail)
    timeout_s = request.state.deadline - time.monotonic()
    body = await read_body(request, max_bytes=settings.max_upload_bytes, timeout_s=timeout_s)
    length = request.headers.get(HEADER_LENGTH)

    def read() -> InferRequest:
        content = body if coding == "identity" else decompress(body, coding, settings.max_upload_bytes)
        return parse(content, length, tuple(_OUTPUTS), settings.max_pixels)

    return await in_pool(service, read)


@dataclass(frozen=True)
class _Result:
    """What an answer needs of an inspection, whose image is not kept until the last one is scored."""

    id: UUID
    prediction: Prediction


async def _inspect_all(
    request: Request, served: Served, asked: InferRequest, seconds: dict[str, float]
) -> list[_Result]:
    """Inspect the images, a few at a time; the first that fails takes those that wait with it."""
    service, places = service_of(request), asyncio.Semaphore(_AT_ONCE)

    async def one(index: int, image: bytes | NDArray[Any]) -> _Result:
        async with places:
            submission = Submission(
                id=request.state.id if index == 0 else uuid4(),
                served=served,
                data=image if isinstance(image, bytes) else await in_pool(service, partial(as_file, image)),
                caller=request.state.caller,
                protocol="oip",
                output="score",
                begun=request.state.begun,
                deadline=request.state.deadline,
                seconds=seconds,
                part=asked.part,
                lot=asked.lot,
            )
            try:
                inspection = await inspect(service, submission)
            except ProblemError as error:
                if len(asked.images) == 1:
                    raise
                raise ProblemError(error.kind, f"image {index}: {error.detail}", error.headers) from error
            return _Result(inspection.id, inspection.prediction)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(index, image)) for index, image in enumerate(asked.images)]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from errors
    return [task.result() for task in tasks]


def _tensors(served: Served, results: list[_Result]) -> dict[str, Tensor]:
    predictions, operating_point = [result.prediction for result in results], served.point
    count = len(results)
    return {
        "score": np.array([prediction.image_score for prediction in predictions], np.float32),
        "threshold": np.full(count, operating_point.image_threshold, np.float32),
        "p_value": np.array([prediction.p_value for prediction in predictions], np.float32),
        "verdict": [prediction.verdict.encode() for prediction in predictions],
        "anomaly_map": np.stack([prediction.anomaly_map for prediction in predictions]),
        "pixel_threshold": np.full(count, operating_point.pixel_threshold, np.float32),
        "inspection_id": [str(result.id).encode() for result in results],
    }


router = APIRouter()
router.include_router(server)
router.include_router(models)
