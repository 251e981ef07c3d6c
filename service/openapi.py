"""The OpenAPI document: what FastAPI generates, with the answers that it cannot know of."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from service.errors import (
    FOREIGN_ORIGIN,
    UNKNOWN_HOST,
    UNSUPPORTED_MEDIA_TYPE,
    UPLOAD_TIMEOUT,
    UPLOAD_TOO_LARGE,
    Problem,
    document_problems,
    shape_of,
)
from service.security import document_security

_OF_JSON = (UPLOAD_TIMEOUT, UPLOAD_TOO_LARGE, UNSUPPORTED_MEDIA_TYPE)
"""What any body may be refused for that FastAPI reads."""


def extend_openapi(app: FastAPI) -> None:
    """Have the application's document describe problems, and every status that a route may answer with."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        if "Problem" not in schemas:
            problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(problem.pop("$defs"), Problem=problem)
            _remove_validation_errors(document)
            for shape in app.state.error_shapes.values():
                schemas[shape.schema.__name__] = shape.schema.model_json_schema()
            for path, operations in document["paths"].items():
                for operation in operations.values():
                    document_security(operation, shape_of(app, path))
                    document_problems(operation, shape_of(app, path), FOREIGN_ORIGIN, UNKNOWN_HOST)
                    if "$ref" in str(operation.get("requestBody", {}).get("content", {}).get("application/json")):
                        document_problems(operation, shape_of(app, path), *_OF_JSON)
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way to extend the document


def _remove_validation_errors(document: dict[str, Any]) -> None:
    """Take out the 422 that FastAPI adds to every route with a parameter, though its shape is not what we send."""
    for operations in document["paths"].values():
        for operation in operations.values():
            if "application/json" in operation["responses"].get("422", {}).get("content", {}):
                del operation["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
