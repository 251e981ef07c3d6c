from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.reproduction.support import write_fashion_mnist


@pytest.fixture(scope="session")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small Fashion-MNIST; only to be read."""
    return write_fashion_mnist(tmp_path_factory.mktemp("fashion"))
