"""Where the real data are, and what every test shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

DATA = Path(os.environ.get("SCALABLE_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of small real inputs; absent is a skip for a newcomer and a failure in CI."""
    if not DATA.is_dir():
        message = f"real data not found at {DATA}; set SCALABLE_DATA"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return DATA
