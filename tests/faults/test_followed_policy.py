"""A process that follows a policy file is killed wherever it stands, and its disk is full."""

from __future__ import annotations

import asyncio
import os
import random
import select
import signal
import struct
import threading
import time
from pathlib import Path

import pytest

import dpmesh
from dpmesh import files
from dpmesh.errors import DpmeshError
from dpmesh.mesh import follower, mesh
from dpmesh.rollout import file_source, last_good
from tests.support import children, disk
from tests.support.protos import compiled

TYPES = compiled(
    """message Report { string id = 1 [(dpmesh.v1.field).unit = {}];
    double a = 2 [(dpmesh.v1.field).numeric = {lower: 0 upper: 1 epsilon: 1}]; }"""
)
NAME = TYPES.Report.DESCRIPTOR.full_name
KILLS = 200
TRACED = tuple(each.__file__ for each in (files, last_good, file_source, follower, mesh))
_REPORT = struct.Struct("<Q")


def write(path: Path, epoch: int, text: str = "") -> None:
    """Puts a policy in the place of the one before. Each is tighter than all before, so that it is taken at once."""
    rule = f"{{numeric: {{lower: 0, upper: 1, epsilon: {0.999**epoch}}}}}"
    other = path.with_suffix(".new")
    other.write_text(text or f"epoch: {epoch}\nfields:\n  {NAME}.a: {rule}\n...\n")
    other.replace(path)


def settings(path: Path, cache: Path) -> dict:
    budget = {"name": "unit", "epsilon": 1e6, "accounting": "pure", "window": "24h"}
    followed = {"source": str(path), "poll": "0.1s", "cache": str(cache)}
    return {"ledger": {"url": "memory:"}, "budget": [budget], "policy": followed}


async def follow(path: Path, pipe: int) -> None:
    """Follows a file for ever, and reports each epoch that is in force before it looks again."""
    async with dpmesh.open(settings(path, path.parent / "cache")) as mesh:
        told = None
        while True:
            epoch = mesh.policy.document.epoch
            if epoch != told:
                os.write(pipe, _REPORT.pack(epoch))
                told = epoch
            mesh.follower.poke()
            await asyncio.sleep(0.002)


def started(path: Path, lines: int | None) -> tuple[int, int]:
    """Forks a process that follows a file; with `lines` it kills itself before it runs so many lines of dpmesh."""
    reader, writer = os.pipe()

    def run() -> None:
        os.close(reader)
        left = lines or 0

        def line(frame, event, _):
            nonlocal left
            left -= event == "line"
            if left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return line

        if lines is not None:
            threading.settrace(lambda frame, *_: line if frame.f_code.co_filename in TRACED else None)
        asyncio.run(follow(path, writer))

    pid, result = children.start(run)
    os.close(writer)
    os.close(result)
    return pid, reader


def test_a_follower_that_is_killed_begins_again_with_the_old_policy_or_the_new_one(tmp_path):
    """A follower is killed 200 times while the file changes: at random moments, and at random lines of its threads.

    After each kill somebody puts an older policy, a half one or none in its place. The next process begins with a policy
    that is at least as new as what was in force.
    """
    chance, path = random.Random(7), tmp_path / "policy.yaml"
    epoch = in_force = 1
    write(path, epoch)
    for number in range(KILLS):
        lines = int(10 ** chance.uniform(0, 3)) if number % 2 else None
        pid, reader = started(path, lines)
        select.select([reader], [], [], 60)  # It has begun with what it found, or is dead.
        end = time.monotonic() + chance.uniform(0.02, 0.25)
        while time.monotonic() < end:
            epoch += 1
            write(path, epoch)
            time.sleep(0.005)
        os.kill(pid, signal.SIGKILL)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL
        with os.fdopen(reader, "rb") as pipe:
            reports = [each for (each,) in _REPORT.iter_unpack(pipe.read())]
        assert reports == sorted(reports), "an epoch went back"
        if reports:
            assert reports[0] >= in_force, (number, lines, reports[0], in_force)
            in_force = reports[-1]
        kept = any((tmp_path / "cache").glob("*.policy"))  # Otherwise there is nothing to begin with.
        attack = chance.choice(["older", "half", "none", "nothing"]) if kept else "nothing"
        if attack == "older":
            write(path, max(in_force - 1, 1))
        elif attack == "half":
            write(path, epoch, f"epoch: {epoch + 1}\nfields:\n")
        elif attack == "none":
            path.unlink()
    print(f"{KILLS} kills, {in_force} of {epoch} policies in force")
    assert in_force > KILLS


async def _full(folder: Path, path: Path) -> None:
    cache = folder / "cache"
    write(path, 1)
    async with dpmesh.open(settings(path, cache)) as mesh:
        disk.fill(folder)
        write(path, 2)
        await _until(lambda: "No space left" in mesh.policy_status.refused)
        assert mesh.policy.document.epoch == 1
    # A start on the full disk has the old policy; it does not start with one that it can't keep.
    with pytest.raises(DpmeshError, match="No space left"):
        async with dpmesh.open(settings(path, cache)):
            pass
    path.unlink()
    async with dpmesh.open(settings(path, cache)) as mesh:
        assert mesh.policy.document.epoch == 1
        write(path, 3)
        await _until(lambda: "No space left" in mesh.policy_status.refused)
        disk.free(folder)
        await _until(lambda: mesh.policy.document.epoch == 3)
    path.unlink()
    async with dpmesh.open(settings(path, cache)) as mesh:
        assert mesh.policy.document.epoch == 3


async def _until(condition) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)


def test_a_policy_that_a_full_disk_can_not_keep_is_not_in_force(tmp_path):
    disk.run(1, lambda folder: asyncio.run(_full(folder, tmp_path / "policy.yaml")))
