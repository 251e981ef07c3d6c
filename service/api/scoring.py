"""Scoring one image: as numbers, as a picture, or as a picture of why."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response
from pydantic import Field

from models.explanation import Method
from models.geometry import Box
from service.admission import INSPECTION_PROBLEMS
from service.answers import Score, score_of
from service.errors import (
    INVALID_REQUEST,
    MALFORMED_MULTIPART,
    NOT_EXPLAINABLE,
    UNSUPPORTED_MEDIA_TYPE,
    UPLOAD_TIMEOUT,
    UPLOAD_TOO_LARGE,
    problem_responses,
)
from service.inspection import Inspection, Service, in_pool, service_of, timed
from service.rendering import (
    DEFAULT_OPACITY,
    SCALE_END,
    SCALE_START,
    colour_scale,
    full_colour,
    render_explanation,
    render_overlay,
    render_raw,
)
from service.security import Scope, requires
from service.submissions import InspectionQuery, inspect_upload, set_deadline
from service.uploads import REQUEST_BODY

router = APIRouter(
    prefix="/v1/categories/{category}",
    tags=["scoring"],
    dependencies=[Depends(requires(Scope.SCORE)), Depends(set_deadline)],
)

_PROBLEM_KINDS = (
    MALFORMED_MULTIPART,
    UPLOAD_TIMEOUT,
    UPLOAD_TOO_LARGE,
    UNSUPPORTED_MEDIA_TYPE,
    INVALID_REQUEST,
    *INSPECTION_PROBLEMS,
)
_PROBLEMS = problem_responses(*_PROBLEM_KINDS)


class ScoreQuery(InspectionQuery):
    map: bool = Field(default=False, description="add the score map")


class HeatmapQuery(InspectionQuery):
    style: Literal["overlay", "raw"] = Field(
        default="overlay",
        description=f"overlay: colours over the original image, from {SCALE_START} to {SCALE_END} times the pixel "
        "threshold, nothing below, regions outlined in white. raw: the anomaly map as computed, at the detector's "
        "input size, 16-bit grayscale: value = X-Plumbline-Map-Minimum + code * X-Plumbline-Map-Step",
    )
    opacity: float = Field(default=DEFAULT_OPACITY, ge=0, le=1, description="of the overlay's colours")


class ExplainQuery(InspectionQuery):
    method: Method = Field(
        default="integrated_gradients",
        description="integrated_gradients: pixel by pixel, what the window with the highest score adds to the score of "
        "its own mean colour. grad_cam: which of the encoder's last features raise it, coarser",
    )
    opacity: float = Field(default=DEFAULT_OPACITY, ge=0, le=1, description="of the strongest colours")


class PngResponse(Response):
    media_type = "image/png"


@router.post("/score", responses=_PROBLEMS, response_model_exclude_none=True, openapi_extra=REQUEST_BODY)
async def score(category: str, query: Annotated[ScoreQuery, Query()], request: Request) -> Score:
    """Score one image, sent as the multipart field `image` or as the request's body."""
    inspection = await inspect_upload(request, category, query, "score")
    return score_of(inspection, with_map=query.map)


_HEADERS = {
    "Id": "id of the inspection",
    "Category": "category",
    "Version": "version of the detector",
    "Operation": "number of the version's run-time settings that decided",
    "Image-Score": "image score",
    "Threshold": "image scores above it are defective",
    "Pixel-Threshold": "the anomaly map's values above it form regions",
    "P-Value": "share of good parts at least as anomalous",
    "Verdict": "verdict",
    "Image-Size": "width x height of the image as displayed",
}
_HEATMAP_HEADERS = {
    "Scale-Start": "overlay: the anomaly map's value at the first colour",
    "Scale-End": "overlay: its value at the last colour",
    "Map-Minimum": "raw: the value of code 0",
    "Map-Step": "raw: the value between one code and the next",
    "Map-Content": "raw: x,y,width,height of the image inside the map",
}
_EXPLAIN_HEADERS = {
    "Method": "method",
    "Window": "x,y,width,height of the window that has the image score, in pixels of the image as displayed",
    "Baseline-Score": "integrated_gradients: the score of the window's mean colour",
    "Attribution-Sum": "integrated_gradients: what all pixels add, about Image-Score - Baseline-Score",
    "Full-Colour": "the attribution, above or below 0, from which on a pixel's colour is full",
}


def _png(headers: dict[str, str]) -> dict[str, Any]:
    return {
        "description": "The picture; the numbers are in the headers, as /score names them.",
        "headers": {
            f"X-Plumbline-{name}": {"description": text, "schema": {"type": "string"}} for name, text in headers.items()
        },
    }


@router.post(
    "/heatmap",
    responses={200: _png(_HEADERS | _HEATMAP_HEADERS), **_PROBLEMS},
    response_class=PngResponse,
    openapi_extra=REQUEST_BODY,
)
async def heatmap(category: str, query: Annotated[HeatmapQuery, Query()], request: Request) -> Response:
    """Show where one image deviates; the input is that of `/score`."""
    inspection = await inspect_upload(request, category, query, "heatmap")
    service = service_of(request)
    prediction, threshold = inspection.prediction, inspection.served.point.pixel_threshold
    region = inspection.served.operation.region_of_interest
    facts = _facts(category, inspection)
    with _rendering(service):
        if query.style == "raw":
            raw = await in_pool(service, partial(render_raw, prediction.anomaly_map))
            facts |= {
                "Map-Minimum": raw.minimum,
                "Map-Step": raw.step,
                "Map-Content": _text(prediction.placement.content),
            }
            png = raw.png
        else:
            draw = partial(render_overlay, inspection.image, prediction, threshold, query.opacity, region)
            facts["Scale-Start"], facts["Scale-End"] = colour_scale(threshold)
            png = await in_pool(service, draw)
    return _picture(png, facts)


@router.post(
    "/explain",
    responses={200: _png(_HEADERS | _EXPLAIN_HEADERS), **problem_responses(*_PROBLEM_KINDS, NOT_EXPLAINABLE)},
    response_class=PngResponse,
    openapi_extra=REQUEST_BODY,
)
async def explain(category: str, query: Annotated[ExplainQuery, Query()], request: Request) -> Response:
    """Show what made the score of one image; the input is that of `/score`.

    Takes longer than a score, so one image is explained at a time: a second one is told to retry.
    """
    inspection = await inspect_upload(request, category, query, "explain", query.method)
    service, explanation = service_of(request), inspection.explanation
    assert explanation is not None
    facts = _facts(category, inspection) | {
        "Method": explanation.method,
        "Window": _text(inspection.prediction.placement.to_original_box(explanation.window)),
        "Full-Colour": full_colour(explanation),
    }
    if explanation.baseline_score is not None:
        facts["Baseline-Score"] = explanation.baseline_score
        facts["Attribution-Sum"] = explanation.total
    with _rendering(service):
        png = await in_pool(service, partial(render_explanation, inspection.image, explanation, query.opacity))
    return _picture(png, facts)


def _facts(category: str, inspection: Inspection) -> dict[str, object]:
    prediction, operating_point = inspection.prediction, inspection.served.point
    width, height = inspection.size
    return {
        "Category": category,
        "Version": inspection.served.version,
        "Operation": inspection.served.operation.number,
        "Image-Score": prediction.image_score,
        "Threshold": operating_point.image_threshold,
        "Pixel-Threshold": operating_point.pixel_threshold,
        "P-Value": prediction.p_value,
        "Verdict": prediction.verdict,
        "Image-Size": f"{width}x{height}",
    }


def _text(box: Box) -> str:
    return f"{box.x},{box.y},{box.width},{box.height}"


def _picture(png: bytes, facts: dict[str, object]) -> Response:
    return PngResponse(png, headers={f"X-Plumbline-{name}": str(value) for name, value in facts.items()})


@contextmanager
def _rendering(service: Service) -> Iterator[None]:
    begun, seconds = time.monotonic(), dict[str, float]()
    with timed(seconds, "render"):
        yield
    service.telemetry.observe_stages(begun, seconds)
