"""The client and the service's OpenAPI document agree on every answer: this fails when one of them moves alone."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from client import CategoryDetails, ExplanationPicture, Health, Overlay, RawMap, Readiness, Score, Verdict, calls
from client.answers import CategoryList
from client.calls import Call
from models.prediction import Verdict as ServicesVerdict

NAME = "plate"
JSON = "application/json"

ANSWERS: list[tuple[Call[Any], type[BaseModel]]] = [
    (calls.score(NAME, b""), Score),
    (calls.categories(), CategoryList),
    (calls.category(NAME), CategoryDetails),
    (calls.health(), Health),
    (calls.ready(), Readiness),
]
PICTURES: list[tuple[Call[Any], set[type[BaseModel]]]] = [
    (calls.heatmap(NAME, b""), {Overlay, RawMap}),
    (calls.explain(NAME, b""), {ExplanationPicture}),
]


@pytest.fixture(scope="module")
def document(url: str) -> dict[str, Any]:
    return dict(httpx.get(f"{url}/openapi.json").json())


def operation(document: dict[str, Any], call: Call[Any]) -> dict[str, Any]:
    """What the document says of a call."""
    path = "/".join("{category}" if part == NAME else part for part in call.path.split("/"))
    return dict(document["paths"][path][call.method.lower()])


def shape(schema: dict[str, Any], definitions: dict[str, Any]) -> Any:
    """The types of a JSON schema and of all below it, without their names, words and defaults.

    A null is left out, and words that a newer service may add to are texts.
    """
    if "$ref" in schema:
        return shape(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in schema:
        (only,) = (one for one in schema["anyOf"] if one != {"type": "null"})
        return shape(only, definitions)
    if "properties" in schema:
        return {name: shape(one, definitions) for name, one in schema["properties"].items()}
    if "items" in schema:
        return [shape(schema["items"], definitions)]
    return schema["type"], schema.get("format")


@pytest.mark.parametrize(("call", "model"), ANSWERS, ids=lambda one: getattr(one, "path", ""))
def test_every_field_of_an_answer(document: dict[str, Any], call: Call[Any], model: type[BaseModel]) -> None:
    own = model.model_json_schema(mode="serialization")
    for status in call.success:
        sent = operation(document, call)["responses"][str(status)]["content"][JSON]["schema"]
        assert shape(own, own.get("$defs", {})) == shape(sent, document["components"]["schemas"])


@pytest.mark.parametrize(("call", "models"), PICTURES, ids=lambda one: getattr(one, "path", ""))
def test_every_header_of_a_picture(document: dict[str, Any], call: Call[Any], models: set[type[BaseModel]]) -> None:
    headers = operation(document, call)["responses"]["200"]["headers"]
    told = {name.lower().removeprefix("x-plumbline-").replace("-", "_") for name in headers}
    fields = {name for model in models for name in model.model_fields}
    assert fields - {"png", "image"} == told - {"image_size"}


@pytest.mark.parametrize("call", [call for call, _ in (*ANSWERS, *PICTURES)], ids=lambda call: call.path)
def test_every_parameter_of_a_request(document: dict[str, Any], call: Call[Any]) -> None:
    known = {one["name"] for one in operation(document, call).get("parameters", ()) if one["in"] == "query"}
    assert set(call.query) <= known


def test_verdicts() -> None:
    assert set(Verdict) == set(map(str, ServicesVerdict))
