"""Amazon Lookout for Vision's API, as boto3 speaks it: a project is a category, a model a version.

That service ended on 2025-10-31. Programs made for it go on with another ``endpoint_url``.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from models.prediction import Prediction, Verdict
from service.admission import INSPECTION_PROBLEMS, admit
from service.errors import (
    CATEGORY_UNAVAILABLE,
    INVALID_REQUEST,
    NOT_FOUND,
    STORE_UNAVAILABLE,
    UNKNOWN_CATEGORY,
    UNKNOWN_VERSION,
    UNSUPPORTED_MEDIA_TYPE,
    UPLOAD_TIMEOUT,
    UPLOAD_TOO_LARGE,
    VERSION_IN_USE,
    VERSION_UNAVAILABLE,
    WORKER_UNAVAILABLE,
    ErrorShape,
    ProblemError,
    ProblemKind,
    media_type_of,
    not_accepted,
    quote,
)
from service.inspection import Submission, in_pool, inspect, service_of, timed
from service.registry import SERVED_PROBLEMS, version_number
from service.rendering import render_mask
from service.security import Scope, requires_signature
from service.submissions import set_deadline, unless_client_leaves
from service.uploads import read_body, refuse_coding
from service.version_facts import VersionFacts, VersionState

PREFIX = "/2020-11-20"

_ANOMALY_COLOUR = 0xE0262C
_RETRY_AFTER_S = "5"
_ARN = "arn:plumbline:lookoutvision:local:000000000000"


class LookoutError(BaseModel):
    """What every failure answers with; the header `x-amzn-ErrorType` names the exception."""

    Message: str
    ResourceId: str | None = None
    ResourceType: Literal["PROJECT", "MODEL"] | None = None


class _Errors(ErrorShape):
    """Problems as the exceptions that boto3 raises."""

    schema = LookoutError

    def status(self, kind: ProblemKind) -> int:
        return _exception(kind)[1]

    def answer(self, request: Request, kind: ProblemKind, detail: str, headers: Mapping[str, str]) -> Response:
        name, status = _exception(kind)
        error = LookoutError(Message=detail)
        if status in (404, 409):
            project, model = (request.path_params.get(part) for part in ("projectName", "modelVersion"))
            whole = model is None or kind is UNKNOWN_CATEGORY
            error.ResourceType, error.ResourceId = ("PROJECT", project) if whole else ("MODEL", f"{project}/{model}")
        more = {"Retry-After": _RETRY_AFTER_S} if status == 429 else {}
        return JSONResponse(
            error.model_dump(exclude_none=True),
            status,
            {**more, **headers, "x-amzn-ErrorType": name, "x-amzn-RequestId": str(request.state.id)},
        )


def _exception(kind: ProblemKind) -> tuple[str, int]:
    """The exception's name and status for a kind of problem."""
    if kind is CATEGORY_UNAVAILABLE or kind.status == 409:
        return "ConflictException", 409
    if kind.status == 404 and kind is not NOT_FOUND:
        return "ResourceNotFoundException", 404
    if kind.status in (401, 403, 421):
        return "AccessDeniedException", 403
    if kind is WORKER_UNAVAILABLE or kind.status == 500:
        return "InternalServerException", 500
    if kind.status == 429 or kind.status > 500:  # a full queue and whatever else passes: try again later
        return "ThrottlingException", 429
    return "ValidationException", 400


ERRORS = _Errors()


async def _body(request: Request) -> bytes:
    """The body, read once: its signature is checked before anything else is."""
    if not hasattr(request.state, "body"):
        settings, request.state.seconds = service_of(request).settings, {}
        with timed(request.state.seconds, "upload"):
            timeout_s = request.state.deadline - time.monotonic()
            request.state.body = await read_body(request, max_bytes=settings.max_upload_bytes, timeout_s=timeout_s)
    body: bytes = request.state.body
    return body


_requires = partial(requires_signature, "lookoutvision", _body)

router = APIRouter(prefix=PREFIX, tags=["lookout for vision"], dependencies=[Depends(set_deadline)])

_READ, _CHANGE = [Depends(_requires())], [Depends(_requires(Scope.ADMIN))]

ProjectName = Annotated[str, Path(max_length=255, pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_\-]*$")]
ModelVersion = Annotated[str, Path(max_length=10, pattern=r"^([1-9][0-9]*|latest)$")]


class PixelAnomaly(BaseModel):
    TotalPercentageArea: float = Field(description="share of the image's pixels, 0 to 1")
    Color: str = Field(description="of the label in the mask, #RRGGBB")


class Anomaly(BaseModel):
    Name: Literal["background", "anomaly"]
    PixelAnomaly: PixelAnomaly


class ImageSource(BaseModel):
    Type: Literal["direct"] = "direct"


class DetectAnomalyResult(BaseModel):
    Source: ImageSource = ImageSource()
    IsAnomalous: bool = Field(description="true for every verdict but good")
    Confidence: float = Field(
        description="with the p-value p: anomalous, 1 - p; normal, p / (p + a), a being the false-reject rate that the "
        "threshold was set for; of an image that does not show the product 1 - 0.5 / i, i being its invalidity"
    )
    Anomalies: list[Anomaly]
    AnomalyMask: str = Field(description="base64 of a PNG of the size of the image as displayed")


class DetectAnomaliesResponse(BaseModel):
    DetectAnomalyResult: DetectAnomalyResult


class ModelMetadata(BaseModel):
    ModelVersion: str
    ModelArn: str
    CreationTimestamp: float | None = Field(default=None, description="seconds since 1970")
    Status: Literal["TRAINED", "STARTING_HOSTING", "HOSTED", "HOSTING_FAILED"]
    StatusMessage: str | None = None


class ListModelsResponse(BaseModel):
    Models: list[ModelMetadata]
    NextToken: str | None = None


class HostingResponse(BaseModel):
    Status: Literal["HOSTED", "STOPPING_HOSTING"]


class DescribeModelResponse(BaseModel):
    ModelDescription: ModelMetadata


class ProjectMetadata(BaseModel):
    ProjectName: str
    ProjectArn: str


class ProjectDescription(ProjectMetadata):
    Datasets: list[Any] = Field(default=[], description="always empty: images of training are not kept here")


class ListProjectsResponse(BaseModel):
    Projects: list[ProjectMetadata]
    NextToken: str | None = None


class DescribeProjectResponse(BaseModel):
    ProjectDescription: ProjectDescription


@router.post(
    "/projects/{projectName}/models/{modelVersion}/detect",
    responses=ERRORS.responses(
        UPLOAD_TIMEOUT,
        UPLOAD_TOO_LARGE,
        UNSUPPORTED_MEDIA_TYPE,
        INVALID_REQUEST,
        *INSPECTION_PROBLEMS,
    ),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
    dependencies=[Depends(_requires(Scope.SCORE))],
)
async def detect_anomalies(
    projectName: ProjectName, modelVersion: ModelVersion, request: Request, response: Response
) -> DetectAnomaliesResponse:
    """Score one image."""
    if not (media_type := media_type_of(request)).startswith("image/"):
        raise ProblemError(UNSUPPORTED_MEDIA_TYPE, not_accepted(media_type, "send image/jpeg or image/png"))
    refuse_coding(request)
    service = service_of(request)
    served = await admit(service, projectName, _number(modelVersion), deadline=request.state.deadline)
    request.state.log.update(category=projectName, version=served.version)
    data = await _body(request)
    submission = Submission(
        id=request.state.id,
        served=served,
        data=data,
        caller=request.state.caller,
        protocol="lookout",
        output="score",
        begun=request.state.begun,
        deadline=request.state.deadline,
        seconds=request.state.seconds,
    )
    inspection = await unless_client_leaves(request, inspect(service, submission))
    prediction, point = inspection.prediction, served.point
    request.state.log.update(verdict=prediction.verdict, image_score=prediction.image_score)
    region = served.operation.region_of_interest
    draw = partial(render_mask, prediction, point.pixel_threshold, _ANOMALY_COLOUR, region)
    mask, share = await in_pool(service, draw)
    response.headers["x-amzn-RequestId"] = str(request.state.id)
    return DetectAnomaliesResponse(
        DetectAnomalyResult=DetectAnomalyResult(
            IsAnomalous=prediction.verdict is not Verdict.GOOD,
            Confidence=confidence(prediction, point.false_reject_rate),
            Anomalies=_anomalies(share),
            AnomalyMask=base64.b64encode(mask).decode(),
        )
    )


_PROJECT_PROBLEMS = ERRORS.responses(INVALID_REQUEST, UNKNOWN_CATEGORY)
_MODEL_PROBLEMS = ERRORS.responses(
    INVALID_REQUEST, UNKNOWN_CATEGORY, UNKNOWN_VERSION, VERSION_UNAVAILABLE, STORE_UNAVAILABLE
)
_MaxResults = Annotated[int, Query(alias="maxResults", ge=1, le=100)]
_NextToken = Annotated[str, Query(alias="nextToken", pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_\-]{0,254}$")]


@router.get(
    "/projects", responses=ERRORS.responses(INVALID_REQUEST), response_model_exclude_none=True, dependencies=_READ
)
async def list_projects(
    request: Request, maxResults: _MaxResults = 100, nextToken: _NextToken | None = None
) -> ListProjectsResponse:
    """Every category, by name."""
    names = [category.name for category in service_of(request).registry.categories()]
    page, token = _page(names, maxResults, nextToken)
    return ListProjectsResponse(
        Projects=[ProjectMetadata(ProjectName=name, ProjectArn=f"{_ARN}:project/{name}") for name in page],
        NextToken=token,
    )


@router.get("/projects/{projectName}", responses=_PROJECT_PROBLEMS, dependencies=_READ)
async def describe_project(projectName: ProjectName, request: Request) -> DescribeProjectResponse:
    """A category."""
    name = service_of(request).registry.category(projectName).name
    return DescribeProjectResponse(
        ProjectDescription=ProjectDescription(ProjectName=name, ProjectArn=f"{_ARN}:project/{name}")
    )


@router.get(
    "/projects/{projectName}/models",
    responses=_MODEL_PROBLEMS,
    response_model_exclude_none=True,
    dependencies=_READ,
)
async def list_models(
    projectName: ProjectName, request: Request, maxResults: _MaxResults = 100, nextToken: _NextToken | None = None
) -> ListModelsResponse:
    """The versions of a category, the latest first."""
    versions = {str(facts.version): facts for facts in await service_of(request).registry.versions(projectName)}
    page, token = _page(list(versions), maxResults, nextToken)
    return ListModelsResponse(Models=[_model(projectName, versions[number]) for number in page], NextToken=token)


@router.get(
    "/projects/{projectName}/models/{modelVersion}",
    responses=_MODEL_PROBLEMS,
    response_model_exclude_none=True,
    dependencies=_READ,
)
async def describe_model(
    projectName: ProjectName, modelVersion: ModelVersion, request: Request
) -> DescribeModelResponse:
    """One version of a category."""
    versions = await service_of(request).registry.versions(projectName)
    asked = (one for one in versions if modelVersion == str(one.version) or (modelVersion == "latest" and one.active))
    if (facts := next(asked, None)) is None:
        raise ProblemError(UNKNOWN_VERSION, f"category {projectName!r} has no version {modelVersion}")
    return DescribeModelResponse(ModelDescription=_model(projectName, facts))


@router.post(
    "/projects/{projectName}/models/{modelVersion}/start",
    status_code=202,
    responses=ERRORS.responses(UPLOAD_TIMEOUT, UPLOAD_TOO_LARGE, INVALID_REQUEST, *SERVED_PROBLEMS),
    dependencies=_CHANGE,
)
async def start_model(projectName: ProjectName, modelVersion: ModelVersion, request: Request) -> HostingResponse:
    """Have a version in memory, and say so when it is there. Inference units have no meaning here."""
    await service_of(request).registry.served(projectName, _number(modelVersion))
    return HostingResponse(Status="HOSTED")


@router.post(
    "/projects/{projectName}/models/{modelVersion}/stop",
    status_code=202,
    responses=ERRORS.responses(
        UPLOAD_TIMEOUT, UPLOAD_TOO_LARGE, INVALID_REQUEST, UNKNOWN_CATEGORY, CATEGORY_UNAVAILABLE, VERSION_IN_USE
    ),
    dependencies=_CHANGE,
)
async def stop_model(projectName: ProjectName, modelVersion: ModelVersion, request: Request) -> HostingResponse:
    """Take a version out of memory; not the active one, nor the shadow."""
    registry = service_of(request).registry
    number = _number(modelVersion)
    registry.unload(projectName, registry.active(projectName).version if number is None else number)
    return HostingResponse(Status="STOPPING_HOSTING")


@router.api_route(
    "/{operation:path}",
    methods=["DELETE", "GET", "PATCH", "POST", "PUT"],
    include_in_schema=False,
    dependencies=_READ,
)
async def not_supported(operation: str, request: Request) -> None:
    """What else that service had: projects, data sets, models and their tags are made and deleted elsewhere."""
    detail = f"{request.method} {quote(request.url.path)} is not supported: categories are trained by 'plumbline train'"
    raise ProblemError(INVALID_REQUEST, detail)


def confidence(prediction: Prediction, false_reject_rate: float) -> float:
    """How sure the answer is, on a scale that the p-value fills: from about 0.5 at the threshold towards 1.

    A p-value says how many good parts are as anomalous. Of an anomalous image that is the doubt itself. An ordinary
    good part may have any p-value, so it is compared with the rate of the threshold.
    """
    p_value = prediction.p_value
    if prediction.verdict is Verdict.GOOD:
        return p_value / (p_value + false_reject_rate)
    if prediction.verdict is Verdict.INVALID:  # whatever its score
        return 1 - 0.5 / max(prediction.invalidity or 1.0, 1.0)
    return 1 - p_value


def _number(version: str) -> int | None:
    return None if version == "latest" else version_number(version)


def _page(keys: list[str], size: int, token: str | None) -> tuple[list[str], str | None]:
    """Keys after the one that a token names, and the token of the next page; a key that is gone ends the list."""
    rest = keys if token is None else keys[keys.index(token) + 1 :] if token in keys else []
    return rest[:size], rest[size - 1] if len(rest) > size else None


def _anomalies(share: float) -> list[Anomaly]:
    background = Anomaly(Name="background", PixelAnomaly=PixelAnomaly(TotalPercentageArea=1 - share, Color="#FFFFFF"))
    colour = f"#{_ANOMALY_COLOUR:06X}"
    anomaly = Anomaly(Name="anomaly", PixelAnomaly=PixelAnomaly(TotalPercentageArea=share, Color=colour))
    return [background, anomaly] if share > 0 else [background]


_STATUS: dict[VersionState, Literal["TRAINED", "STARTING_HOSTING", "HOSTED", "HOSTING_FAILED"]] = {
    VersionState.STORED: "TRAINED",
    VersionState.LOADING: "STARTING_HOSTING",
    VersionState.LOADED: "HOSTED",
    VersionState.FAILED: "HOSTING_FAILED",
}


def _model(project: str, facts: VersionFacts) -> ModelMetadata:
    return ModelMetadata(
        ModelVersion=str(facts.version),
        ModelArn=f"{_ARN}:model/{project}/{facts.version}",
        CreationTimestamp=None if facts.created is None else facts.created.timestamp(),
        Status=_STATUS[facts.state],
        StatusMessage=facts.reason,
    )
