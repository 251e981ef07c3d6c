"""The versions of a category: which there are, which one is served, and changing that."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field

from models.activations import Activation
from service.errors import (
    INVALID_REQUEST,
    MODEL_MEMORY,
    NO_EARLIER_VERSION,
    STORE_READ_ONLY,
    STORE_UNAVAILABLE,
    UNKNOWN_CATEGORY,
    UNKNOWN_VERSION,
    VERSION_IN_USE,
    VERSION_UNAVAILABLE,
    WORKER_UNAVAILABLE,
    problem_responses,
)
from service.inspection import service_of
from service.registry import Registry
from service.security import Scope, requires
from service.submissions import Version
from service.version_facts import VersionState

router = APIRouter(prefix="/v1/categories/{category}", tags=["versions"])

_READ, _CHANGE = [Depends(requires())], [Depends(requires(Scope.ADMIN))]
_READ_PROBLEMS = problem_responses(UNKNOWN_CATEGORY, VERSION_UNAVAILABLE, STORE_UNAVAILABLE)
_CHANGE_PROBLEMS = (
    UNKNOWN_CATEGORY,
    VERSION_UNAVAILABLE,
    STORE_READ_ONLY,
    STORE_UNAVAILABLE,
    WORKER_UNAVAILABLE,
)
_NUMBER_PROBLEMS = (*_CHANGE_PROBLEMS, UNKNOWN_VERSION, MODEL_MEMORY, INVALID_REQUEST)


class VersionNumber(BaseModel):
    """Which version."""

    model_config = ConfigDict(extra="forbid")

    version: Version


class VersionDetails(BaseModel):
    """A version of a category."""

    version: int
    state: VersionState = Field(description="stored: it is loaded when it is asked for")
    created: datetime | None = Field(default=None, description="when it was published; not of a damaged one")
    active: bool = Field(description="whether the model store names it as the active one")
    served: bool = Field(description="whether a request that names no version is scored by it")
    shadow: bool = Field(description="whether it scores beside the active one and only records")
    memory_bytes: int | None = Field(default=None, description="what its arrays hold, where it is loaded")
    reason: str | None = Field(default=None, description="why it could not be loaded")


class VersionList(BaseModel):
    """The versions of a category, the latest first."""

    category: str
    versions: list[VersionDetails]


class ActivationList(BaseModel):
    """Which version of a category became active, the latest first."""

    category: str
    activations: list[Activation]


@router.get("/versions", responses=_READ_PROBLEMS, response_model_exclude_none=True, dependencies=_READ)
async def list_versions(category: str, request: Request) -> VersionList:
    """Every version of a category."""
    return await _versions(service_of(request).registry, category)


@router.get("/activations", responses=_READ_PROBLEMS, dependencies=_READ)
async def list_activations(category: str, request: Request) -> ActivationList:
    """Which version became active, when, and by whom."""
    activations = await service_of(request).registry.activations(category)
    return ActivationList(category=category, activations=activations)


@router.post(
    "/activate",
    responses=problem_responses(*_NUMBER_PROBLEMS),
    response_model_exclude_none=True,
    dependencies=_CHANGE,
)
async def activate(category: str, which: VersionNumber, request: Request) -> VersionList:
    """Load a version, let it score an image, then serve it in the place of the one before; a failure changes nothing.

    Requests under way are answered by the version that they began with.
    """
    registry = service_of(request).registry
    request.state.log.update(category=category, version=which.version)
    await registry.activate(category, which.version, request.state.caller.name)
    return await _versions(registry, category)


@router.post(
    "/rollback",
    responses=problem_responses(*_CHANGE_PROBLEMS, NO_EARLIER_VERSION, UNKNOWN_VERSION, MODEL_MEMORY),
    response_model_exclude_none=True,
    dependencies=_CHANGE,
)
async def rollback(category: str, request: Request) -> VersionList:
    """Activate the version that was active before; once more goes back one more."""
    registry = service_of(request).registry
    version = await registry.rollback(category, request.state.caller.name)
    request.state.log.update(category=category, version=version)
    return await _versions(registry, category)


@router.put(
    "/shadow",
    responses=problem_responses(*_NUMBER_PROBLEMS, VERSION_IN_USE),
    response_model_exclude_none=True,
    dependencies=_CHANGE,
)
async def set_shadow(category: str, which: VersionNumber, request: Request) -> VersionList:
    """Let a version score the images that the active one scores, after their answers, and only record."""
    registry = service_of(request).registry
    request.state.log.update(category=category, shadow=which.version)
    await registry.set_shadow(category, which.version)
    return await _versions(registry, category)


@router.delete(
    "/shadow",
    responses=problem_responses(*_CHANGE_PROBLEMS),
    response_model_exclude_none=True,
    dependencies=_CHANGE,
)
async def end_shadow(category: str, request: Request) -> VersionList:
    """Let no version score beside the active one."""
    registry = service_of(request).registry
    request.state.log.update(category=category, shadow=None)
    await registry.set_shadow(category, None)
    return await _versions(registry, category)


async def _versions(registry: Registry, category: str) -> VersionList:
    facts = await registry.versions(category)
    return VersionList(category=category, versions=[VersionDetails(**asdict(one)) for one in facts])
