"""Whether a category's images still are like those its detector was calibrated on."""

from __future__ import annotations

import logging
from datetime import datetime

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field

from service.batch_test import BATCH
from service.drift import QUANTILES, WARNING_FACTOR, DriftState, Monitor, Watch
from service.errors import CATEGORY_UNAVAILABLE, UNKNOWN_CATEGORY, problem_responses
from service.exchangeability import Change
from service.inspection import service_of
from service.security import Scope, requires

router = APIRouter(prefix="/v1/categories/{category}/drift", tags=["drift"])

_PROBLEMS = problem_responses(UNKNOWN_CATEGORY, CATEGORY_UNAVAILABLE)
_log = logging.getLogger("plumbline.drift")


class DriftTest(BaseModel):
    """One test of whether parts still are like those before."""

    state: DriftState = Field(description="drift stays until the watch is begun anew; a warning may pass")
    since: datetime | None = Field(default=None, description="when this state was reached")
    evidence: float = Field(description="1 at first; drift at 1 / false_alarm_rate, a warning at a tenth of that")
    change: Change | None = Field(default=None, description="how the latest differ, where there is a warning or drift")
    count: int = Field(description=f"parts tested since the watch began; of embeddings, batches of {BATCH}")
    reference: int = Field(description="calibration images they are compared with, besides each other")


class Quantiles(BaseModel):
    """Image scores at the levels that `levels` names."""

    levels: tuple[float, ...] = QUANTILES
    calibration: list[float] | None
    accepted: list[float] | None = Field(default=None, description="of the window's parts with verdict good")
    all: list[float] | None = Field(default=None, description="of all parts in the window")


class DriftReport(BaseModel):
    """How the active version's inspections compare with its calibration."""

    category: str
    version: int
    operation: int
    state: DriftState = Field(description="the worst of the tests")
    false_alarm_rate: float = Field(
        description="of each test: bound of the probability that it ever comes to drift while nothing changes, however "
        f"often one looks; anew for every version and operation. Of a warning: {WARNING_FACTOR} times it"
    )
    scores: DriftTest = Field(description="image scores of accepted parts, with those of the calibration")
    rejects: DriftTest = Field(description="the share of parts that are not accepted, with itself before")
    embeddings: DriftTest = Field(description="mean embeddings of accepted parts, with those of the calibration")
    squared_mmd: float | None = Field(
        default=None, description="maximum mean discrepancy between the latest batch of embeddings and those before"
    )
    window: int = Field(description="latest inspections that the quantiles are of")
    rejected_share: float | None = Field(default=None, description="of the window, parts that were not accepted")
    quantiles: Quantiles


@router.get("", responses=_PROBLEMS, response_model_exclude_none=True, dependencies=[Depends(requires())])
async def show_drift(category: str, request: Request) -> DriftReport:
    """Whether images or parts have changed since the calibration; goes on when the service starts again."""
    return _report(category, service_of(request).drift.monitor(category))


@router.delete(
    "",
    responses=_PROBLEMS,
    response_model_exclude_none=True,
    dependencies=[Depends(requires(Scope.REVIEW, Scope.ADMIN))],
)
async def forget_drift(category: str, request: Request) -> DriftReport:
    """Begin the watch anew, once the cause of an alarm is dealt with."""
    monitor = await service_of(request).drift.forget(category)
    _log.info("drift watch begun anew", extra={"fields": {"category": category, "by": request.state.caller.name}})
    return _report(category, monitor)


def _report(category: str, monitor: Monitor) -> DriftReport:
    version, operation = monitor.key
    return DriftReport(
        category=category,
        version=version,
        operation=operation,
        state=monitor.state,
        false_alarm_rate=monitor.watches["scores"].rate,
        squared_mmd=monitor.squared_mmd,
        window=len(monitor.window),
        rejected_share=monitor.rejected_share(),
        quantiles=Quantiles(**monitor.quantiles()),
        **{name: _test(watch) for name, watch in monitor.watches.items()},
    )


def _test(watch: Watch) -> DriftTest:
    return DriftTest(
        state=watch.state,
        since=watch.since,
        evidence=watch.capital.evidence,
        change=None if watch.state is DriftState.OK else watch.capital.change,
        count=watch.capital.count,
        reference=watch.reference,
    )
