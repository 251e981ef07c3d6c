"""The calls of the API as data: what is sent, and how the answer is read. Neither sends nor waits."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from .answers import (
    Category,
    CategoryDetails,
    CategoryList,
    ExplanationPicture,
    Health,
    Method,
    Overlay,
    RawMap,
    Readiness,
    Score,
)
from .errors import AnswerNotUnderstood, problem_of
from .transport import Reply

Answer = TypeVar("Answer")
Model = TypeVar("Model", bound=BaseModel)

Image = bytes | str | os.PathLike[str] | BinaryIO
"""An image file: its bytes, its path, or a file opened for reading bytes."""

_FACT_PREFIX = "x-plumbline-"


@dataclass(frozen=True)
class Call(Generic[Answer]):
    """One call of the API.

    Attributes:
        read: makes the answer of a reply.
        repeatable: whether doing it twice does no harm.
        retried: whether it is tried again at all.
        success: statuses that ``read`` takes.
    """

    method: str
    path: str
    read: Callable[[Reply], Answer]
    query: Mapping[str, Any] = field(default_factory=dict)
    body: bytes | None = None
    repeatable: bool = True
    retried: bool = True
    success: tuple[int, ...] = (200,)

    def request(self, http: httpx.Client | httpx.AsyncClient, seconds: float) -> httpx.Request:
        """The request, to be answered within ``seconds``: both sides are told."""
        headers = {"X-Request-Timeout": f"{seconds:.3f}"}
        if self.body is not None:
            headers["Content-Type"] = "application/octet-stream"
        query = {name: value for name, value in self.query.items() if value is not None}
        return http.build_request(
            self.method, self.path, params=query, content=self.body, headers=headers, timeout=seconds
        )

    def answer(self, reply: Reply) -> Answer:
        """What a reply says.

        Raises:
            PlumblineError: it is no success, or not understood.
        """
        if reply.status not in self.success:
            raise problem_of(reply)
        try:
            return self.read(reply)
        except (ValidationError, ValueError, KeyError) as error:
            raise AnswerNotUnderstood(f"the answer to {reply.asked} is not of this API: {error}") from error


def read_image(image: Image) -> bytes:
    """The bytes of an image; whole, because a try that is repeated sends them again."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | os.PathLike):
        return Path(image).read_bytes()
    return image.read()


def score(
    category: str, image: bytes, *, score_map: bool = False, part: str | None = None, lot: str | None = None
) -> Call[Score]:
    query = {"map": "true" if score_map else None, "part": part, "lot": lot}
    return _scoring(category, "score", image, _json(Score), query)


def heatmap(
    category: str, image: bytes, *, opacity: float | None = None, part: str | None = None, lot: str | None = None
) -> Call[Overlay]:
    query = {"opacity": opacity, "part": part, "lot": lot}
    return _scoring(category, "heatmap", image, _picture(Overlay), query)


def raw_map(category: str, image: bytes, *, part: str | None = None, lot: str | None = None) -> Call[RawMap]:
    query = {"style": "raw", "part": part, "lot": lot}
    return _scoring(category, "heatmap", image, _picture(RawMap), query)


def explain(
    category: str,
    image: bytes,
    *,
    method: Method | None = None,
    opacity: float | None = None,
    part: str | None = None,
    lot: str | None = None,
) -> Call[ExplanationPicture]:
    query = {"method": method, "opacity": opacity, "part": part, "lot": lot}
    return _scoring(category, "explain", image, _picture(ExplanationPicture), query)


def categories() -> Call[tuple[Category, ...]]:
    return Call("GET", "/v1/categories", lambda reply: _json(CategoryList)(reply).categories)


def category(name: str) -> Call[CategoryDetails]:
    return Call("GET", _category_path(name), _json(CategoryDetails))


def health() -> Call[Health]:
    return Call("GET", "/healthz", _json(Health), retried=False, success=(200, 503))


def ready() -> Call[Readiness]:
    return Call("GET", "/readyz", _json(Readiness), retried=False, success=(200, 503))


def _scoring(
    category: str,
    output: str,
    image: bytes,
    read: Callable[[Reply], Answer],
    query: Mapping[str, Any],
) -> Call[Answer]:
    return Call("POST", f"{_category_path(category)}/{output}", read, query, image, repeatable=False)


def _category_path(name: str) -> str:
    return f"/v1/categories/{quote(name, safe='')}"


def _json(model: type[Model]) -> Callable[[Reply], Model]:
    return lambda reply: model.model_validate_json(reply.content)


def _picture(model: type[Model]) -> Callable[[Reply], Model]:
    """Read a PNG whose numbers are in the headers."""

    def read(reply: Reply) -> Model:
        facts: dict[str, Any] = {
            name.removeprefix(_FACT_PREFIX).replace("-", "_"): value
            for name, value in reply.headers.items()
            if name.startswith(_FACT_PREFIX)
        }
        width, height = facts.pop("image_size").split("x")
        facts["image"] = {"width": width, "height": height}
        for name in {"window", "map_content"} & facts.keys():
            facts[name] = dict(zip(("x", "y", "width", "height"), facts[name].split(","), strict=True))
        return model.model_validate({"png": reply.content, **facts})

    return read
