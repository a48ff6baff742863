"""What tests of several plugins start from."""

from pathlib import Path

import pytest

from tests.small_models import make_base, make_suspect


@pytest.fixture(scope="package")
def lively(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier far enough from its base for every part of it to matter."""
    folder = tmp_path_factory.mktemp("lively")
    return make_suspect(folder / "suspect", make_base(folder / "base"), drift=0.3)
