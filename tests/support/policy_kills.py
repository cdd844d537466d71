"""Kills processes while they take a policy from a repository, at lines of all parts of the refresh.

`run` does it in a new interpreter, which has no threads of other tests when it forks.
"""

from __future__ import annotations

import asyncio
import faulthandler
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from tuf.ngclient import updater

from dpmesh import files
from dpmesh.rollout import tuf_cache, tuf_download, tuf_offer, tuf_source, tuf_trust
from tests.support import children
from tests.support.tuf_repositories import Device, Repository, policy, settle

TRACED = tuple(
    each.__file__ for each in (files, tuf_cache, tuf_download, tuf_offer, tuf_source, tuf_trust, updater)
)


def run(folder: Path, points: int) -> dict[str, int]:
    """Kills a process at so many points while it goes from epoch 1 to 2.

    Returns:
        How often a process that starts without a network then has epoch "1" or "2".
    """
    command = [sys.executable, "-m", __name__, str(folder), str(points)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def fetch(device: Device, last_line: int) -> int:
    """Fetches, and dies before it runs so many lines; returns how many there were if it has not."""
    lines = 0
    faulthandler.dump_traceback_later(60, exit=True)  # Nothing here takes so long.

    def line(frame: Any, event: str, _: Any) -> Any:
        nonlocal lines
        lines += event == "line"
        if lines == last_line:
            os.kill(os.getpid(), signal.SIGKILL)
        return line

    threading.settrace(lambda frame, *_: line if frame.f_code.co_filename in TRACED else None)
    asyncio.run(device.source.fetch())
    return lines


def kill(folder: Path, points: int) -> dict[int | None, int]:
    """What `run` does, in this process.

    Half of the points are spread over the whole refresh. The others are its last lines, in which the file is replaced.
    """
    repository = Repository(folder / "repository")
    repository.add(policy(1))
    repository.publish()
    device = Device(folder / "device", repository)
    asyncio.run(device.source.fetch())
    first = (device.cache / "signed.json").read_bytes()
    repository.add(policy(2))
    repository.ring(2, 1)
    repository.new_keys("timestamp")
    repository.publish()
    gone = repository.folder.with_name("gone")
    found: dict[int | None, int] = {}

    def start(last_line: int) -> Any:
        (device.cache / "signed.json").write_bytes(first)
        device.restart()
        settle()
        return children.start(lambda: fetch(device, last_line))

    total = children.finish(start(-1))
    half = points // 2
    spread = [1 + total * point // half for point in range(half)]
    for last_line in [*spread, *(total - number for number in range(points - half))]:
        pid, pipe = start(last_line)
        os.close(pipe)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL
        repository.folder.rename(gone)
        device.restart()
        try:
            epoch = asyncio.run(device.epoch())
        finally:
            gone.rename(repository.folder)
        found[epoch] = found.get(epoch, 0) + 1
        asyncio.run(device.source.fetch())
        assert device.source._known.kept.epoch == 2
    return found


if __name__ == "__main__":
    print(json.dumps(kill(Path(sys.argv[1]), int(sys.argv[2]))))
