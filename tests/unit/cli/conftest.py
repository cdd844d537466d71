"""A working directory of its own for each test, and the command line called in-process."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from dpmesh import cli


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and no DPMESH_ variables."""
    for name in [name for name in os.environ if name.startswith("DPMESH_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def dpmesh(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Runs one command as `dpmesh ...` would."""

    def call(*arguments: object) -> Ran:
        capsys.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        return Ran(code, *capsys.readouterr())

    return call


@pytest.fixture
def write(workplace: Path) -> Callable[[str, str], Path]:
    """Writes a file into the working directory; returns its relative path."""

    def to(name: str, text: str) -> Path:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return to
