"""What a model store cannot do; the messages say what is there instead, and what to do."""

from __future__ import annotations

from collections.abc import Collection


class StoreError(Exception):
    """A request that the store cannot meet."""


class StoreNotFound(StoreError):
    """There is no folder at the store's root."""


class StoreReadOnly(StoreError):
    """This process may not write to the category."""


class InvalidCategoryName(StoreError, ValueError):
    """The name cannot be that of a category, whatever the store holds."""


class UnknownCategory(StoreError, LookupError):
    """The store holds no version of the category."""

    def __init__(self, category: str, known: Collection[str]) -> None:
        self.category = category
        self.known = sorted(known)
        super().__init__(f"no category {category!r}; there is {', '.join(self.known) or 'none yet'}")


class UnknownVersion(StoreError, LookupError):
    """The category has no such version."""

    def __init__(self, category: str, version: int, known: Collection[int]) -> None:
        self.category = category
        self.version = version
        self.known = sorted(known)
        super().__init__(f"category {category!r} has no version {version}; there is {', '.join(map(str, self.known))}")


class RecordExists(StoreError):
    """A record that is written once is there already."""
