"""What the service can inspect."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field

from service.errors import UNKNOWN_CATEGORY, problem_responses
from service.inspection import service_of
from service.registry import Category, CategoryState
from service.security import requires

router = APIRouter(prefix="/v1/categories", tags=["categories"], dependencies=[Depends(requires())])


class CategorySummary(BaseModel):
    """A category of the model store."""

    category: str
    state: CategoryState = Field(description="only a category that is ready scores")
    version: int | None = Field(default=None, description="the version that is served, or that failed to load")
    shadow: int | None = Field(default=None, description="the version that scores beside it and only records")
    reason: str | None = Field(
        default=None, description="why it failed to load, or why what the model store names is not what is served"
    )


class CategoryDetails(CategorySummary):
    """A category, and its detector where that is ready."""

    operation: int | None = Field(default=None, description="number of the operation in force; see its own route")
    detector: dict[str, Any] | None = Field(
        default=None, description="what the detector is, and how it decides where no operation says otherwise"
    )


class CategoryList(BaseModel):
    categories: list[CategorySummary]
    store_problem: str | None = Field(
        default=None, description="why the service cannot follow the model store; what is loaded goes on serving"
    )


@router.get("", responses=problem_responses(), response_model_exclude_none=True)
async def list_categories(request: Request) -> CategoryList:
    """Every category, by name."""
    registry = service_of(request).registry
    categories = [summary(category) for category in registry.categories()]
    return CategoryList(categories=categories, store_problem=registry.store_problem)


@router.get("/{category}", responses=problem_responses(UNKNOWN_CATEGORY), response_model_exclude_none=True)
async def show_category(category: str, request: Request) -> CategoryDetails:
    """One category and its detector."""
    entry = service_of(request).registry.category(category)
    if (served := entry.served) is None:
        return CategoryDetails(**summary(entry).model_dump())
    return CategoryDetails(
        **summary(entry).model_dump(), operation=served.operation.number, detector=served.detector.description()
    )


def summary(category: Category) -> CategorySummary:
    """A category as the API shows it."""
    return CategorySummary(
        category=category.name,
        state=category.state,
        version=category.version,
        shadow=None if category.shadow is None else category.shadow.version,
        reason=category.reason,
    )
