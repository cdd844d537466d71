"""Progress on a terminal."""

from __future__ import annotations

import sys

import pytest

from dpmesh.cli.progress import counted


async def test_counting_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def numbers():
        for number in range(2500):
            yield number

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert [n async for n in counted(numbers(), "numbers")] == list(range(2500))
    assert [n async for n in counted(numbers(), "numbers", quiet=True)] == list(range(2500))
