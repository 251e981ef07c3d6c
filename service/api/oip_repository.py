"""Triton's model repository extension: which versions there are, and which of them are in memory."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, ValidationError

from service.api.oip import ERRORS, PREFIX
from service.errors import (
    INVALID_REQUEST,
    STORE_UNAVAILABLE,
    UNKNOWN_CATEGORY,
    UPLOAD_TIMEOUT,
    UPLOAD_TOO_LARGE,
    VERSION_IN_USE,
    VERSION_UNAVAILABLE,
    ProblemError,
    ProblemKind,
    faults,
)
from service.inspection import service_of
from service.registry import SERVED_PROBLEMS
from service.security import Scope, requires
from service.uploads import read_body
from service.version_facts import VersionState

Asked = TypeVar("Asked", bound=BaseModel)

_MAX_BYTES = 65_536
_BODY_PROBLEMS = (UPLOAD_TIMEOUT, UPLOAD_TOO_LARGE, INVALID_REQUEST)

router = APIRouter(prefix=f"{PREFIX}/repository", tags=["open inference protocol"])

_States = Literal["READY", "LOADING", "UNAVAILABLE"]
_STATES: dict[VersionState, _States] = {VersionState.LOADED: "READY", VersionState.LOADING: "LOADING"}


class IndexRequest(BaseModel):
    ready: StrictBool = Field(default=False, description="leave out what is not in memory")


class Parameters(BaseModel):
    # Triton's client sends other configurations and files by the same call; they must not be passed over in silence.
    model_config = ConfigDict(extra="forbid")

    version: Annotated[StrictInt, Field(ge=1, lt=10**18)] | None = None
    unload_dependents: StrictBool | None = Field(default=None, description="has no effect: models depend on no other")


class ChangeRequest(BaseModel):
    parameters: Parameters = Parameters()


class ModelVersion(BaseModel):
    """A version of a category."""

    name: str
    version: str
    state: _States
    reason: str = Field(description="why it is not in memory; empty where nothing is wrong")


class Done(BaseModel):
    """Nothing more to say."""


def _documented(model: type[BaseModel], *kinds: ProblemKind) -> dict[str, Any]:
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})
    if "parameters" in schema["properties"]:
        schema["properties"]["parameters"] = definitions["Parameters"]
    return {
        "responses": ERRORS.responses(*_BODY_PROBLEMS, *kinds),
        "openapi_extra": {"requestBody": {"content": {"application/json": {"schema": schema}}}},
    }


@router.post(
    "/index",
    dependencies=[Depends(requires())],
    **_documented(IndexRequest, UNKNOWN_CATEGORY, VERSION_UNAVAILABLE, STORE_UNAVAILABLE),
)
async def index(request: Request) -> list[ModelVersion]:
    """Every version of every category. One that is UNAVAILABLE without a reason is loaded when it is asked for."""
    asked, registry = await _asked(request, IndexRequest), service_of(request).registry
    versions = [
        ModelVersion(
            name=category.name,
            version=str(facts.version),
            state=_STATES.get(facts.state, "UNAVAILABLE"),
            reason=facts.reason or "",
        )
        for category in registry.categories()
        for facts in await registry.versions(category.name)
    ]
    return [version for version in versions if version.state == "READY" or not asked.ready]


@router.post(
    "/models/{model}/load",
    dependencies=[Depends(requires(Scope.ADMIN))],
    **_documented(ChangeRequest, *SERVED_PROBLEMS),
)
async def load(model: str, request: Request) -> Done:
    """Have a version in memory: that of `parameters.version`, or the active one, which is there unless it failed."""
    version = (await _asked(request, ChangeRequest)).parameters.version
    await service_of(request).registry.served(model, version)
    return Done()


@router.post(
    "/models/{model}/unload",
    dependencies=[Depends(requires(Scope.ADMIN))],
    **_documented(ChangeRequest, UNKNOWN_CATEGORY, VERSION_IN_USE),
)
async def unload(model: str, request: Request) -> Done:
    """Take a version out of memory, or all of the model's; what is active or the shadow stays."""
    version = (await _asked(request, ChangeRequest)).parameters.version
    service_of(request).registry.unload(model, version)
    return Done()


async def _asked(request: Request, model: type[Asked]) -> Asked:
    """The JSON of a request, whatever content type it claims: Triton's clients name none, or text."""
    settings = service_of(request).settings
    body = await read_body(request, max_bytes=_MAX_BYTES, timeout_s=settings.request_timeout_s)
    try:
        return model.model_validate_json(body or b"{}")
    except ValidationError as error:
        raise ProblemError(INVALID_REQUEST, faults(error, 1)) from error
