"""What several tests of models start from."""

from pathlib import Path

import pytest

from tests.models.helpers import make_adapter


@pytest.fixture
def adapter(tmp_path: Path, base: Path) -> Path:
    return make_adapter(tmp_path / "adapter", base)
