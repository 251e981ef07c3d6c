"""Whether the service lives, whether it can take requests, and its metrics."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field

from service.api.categories import CategorySummary, summary
from service.inspection import service_of
from service.security import access_of, requires

router = APIRouter(tags=["operation"])


class Health(BaseModel):
    healthy: bool
    reason: str | None = Field(default=None, description="why not")


class Readiness(BaseModel):
    ready: bool
    reason: str | None = Field(default=None, description="why not")
    warning: str | None = Field(
        default=None, description="what is wrong with the models although the service can take requests"
    )
    categories: list[CategorySummary] | None = Field(
        default=None, description="not where callers need keys: /v1/categories has them"
    )


@router.get("/healthz", responses={503: {"model": Health}}, response_model_exclude_none=True)
async def healthz(request: Request, response: Response) -> Health:
    """200 where the process and its worker live; 503 where only a restart helps.

    The worker is dead, hangs, or could not scan the last few batches.
    """
    failure = service_of(request).worker.failure()
    response.status_code = 200 if failure is None else 503
    return Health(healthy=failure is None, reason=failure)


@router.get("/readyz", responses={503: {"model": Readiness}}, response_model_exclude_none=True)
async def readyz(request: Request, response: Response) -> Readiness:
    """200 where every model was tried and at least one has scored a warm-up image; 503 again after SIGTERM."""
    service = service_of(request)
    stopping = "the service is stopping" if service.stopping else None
    obstacle = stopping or service.worker.failure() or service.registry.not_ready()
    response.status_code = 200 if obstacle is None else 503
    known = access_of(request).keyring is None  # who asks here may be anybody
    categories = [summary(category) for category in service.registry.categories()] if known else None
    return Readiness(ready=obstacle is None, reason=obstacle, warning=service.registry.warning(), categories=categories)


@router.get("/metrics", response_class=PlainTextResponse, dependencies=[Depends(requires())])
async def metrics(request: Request) -> Response:
    """Prometheus metrics."""
    service = service_of(request)
    service.telemetry.measure_gpu()
    service.telemetry.queue_depth.set(service.waiting)
    service.telemetry.queue_bytes.set(service.backlog.bytes)
    service.telemetry.worker_up.set(service.worker.failure() is None)
    return Response(generate_latest(service.telemetry.registry), media_type=CONTENT_TYPE_LATEST)
