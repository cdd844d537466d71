"""A place that every user may enter."""

import tempfile
from pathlib import Path

import pytest


@pytest.fixture
def anyones():
    with tempfile.TemporaryDirectory() as place:
        path = Path(place)
        path.chmod(0o1777)  # as /tmp: a folder in which anybody may replace a ledger is refused
        yield path
        path.chmod(0o1777)
