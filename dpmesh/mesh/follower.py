"""PolicyFollower: swaps a mesh's policy whenever its file has another content, and remembers what was refused."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

from dpmesh.errors import ConfigError, DpmeshError
from dpmesh.policy import overlay_file
from dpmesh.v1 import policy_pb2

log = logging.getLogger("dpmesh")

# Each wait is up to this part shorter or longer, so that a fleet does not ask all at once.
_JITTER = 0.1
# What ends a document in YAML.
_END = "..."


class PolicyFollower:
    """Looks at a policy file at intervals, in a task of its own.

    It compares contents, not times: a file that is replaced within one tick of the file system's clock, or by way of a
    symbolic link, as Kubernetes does with ConfigMaps, is noticed. Whatever is wrong with the file or its policy, the
    policy in force stays, and the log says why, once for each reason.

    Args:
        path: A .yaml, .yml or .json file.
        seconds: The time between two looks, about.

    Attributes:
        refused: Why the file's policy is not the one in force, as far as the last look showed; "" if it is.
    """

    def __init__(self, path: str | Path, seconds: float) -> None:
        self.refused = ""
        self._path = Path(path)
        self._seconds = seconds
        self._content: bytes | None = None
        # Why the content is not in force; "" if it is.
        self._unfit = ""
        self._task: asyncio.Task[None] | None = None

    def read(self) -> policy_pb2.Policy:
        """The policy with which to begin.

        Raises:
            ConfigError: The file can't be read, or is no policy.
        """
        self._content = _read(self._path)
        return _parse(self._content, self._path)

    def start(self, swap: Callable[[policy_pb2.Policy], Awaitable[None]]) -> None:
        """Begins to look, in the running event loop.

        Args:
            swap: Puts a policy in force, or raises.
        """
        self._task = asyncio.get_running_loop().create_task(self._follow(swap), name="dpmesh policy")

    async def stop(self) -> None:
        """Ends looking. A swap under way takes effect as a whole, or not at all."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def _follow(self, swap: Callable[[policy_pb2.Policy], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(self._seconds * random.uniform(1 - _JITTER, 1 + _JITTER))  # noqa: S311
            try:
                await self._look(swap)
            except Exception as error:  # The task has to go on.
                self._say(_bug(error, "looked at its policy"))

    async def _look(self, swap: Callable[[policy_pb2.Policy], Awaitable[None]]) -> None:
        try:
            content = await asyncio.to_thread(_read, self._path)
        except DpmeshError as error:
            self._say(str(error))
            return
        if content != self._content:
            self._unfit = "its swap was cut off"
            self._content = content
            try:
                await swap(await asyncio.to_thread(_parse, content, self._path))
            except DpmeshError as error:
                self._unfit = str(error)
            except Exception as error:
                self._unfit = _bug(error, "swapped its policy")
                self._content = None  # The next look tries again: it may have been want of memory.
            else:
                self._unfit = ""
        self._say(self._unfit)

    def _say(self, refused: str) -> None:
        if refused and refused != self.refused:
            log.error("the policy in force stays: %s", refused)
        elif self.refused and not refused:
            log.info("the policy of %s is in force", self._path)
        self.refused = refused


def _read(path: Path) -> bytes:
    """The content of a policy file.

    Raises:
        ConfigError: It can't be read, or is no file: a named pipe may never answer.
    """
    if path.exists() and not path.is_file():
        raise ConfigError(f"policy file {path}: is no regular file, and can't be followed")
    return overlay_file.read_bytes(path)


def _parse(content: bytes, path: Path) -> policy_pb2.Policy:
    """The policy in a content that is whole.

    A writer may be in the middle of the file, or have died there, and a part of a policy is a policy with fewer rules.

    Raises:
        ConfigError: It may be a part of a policy, or it is none.
    """
    lines = content.decode(errors="replace").splitlines()
    last = next((line for line in reversed(lines) if line.strip()), "")
    # A text in braces has its end in itself.
    if last.rstrip() != _END and not content.lstrip().startswith(b"{"):
        raise ConfigError(
            f"policy file {path}: does not end with a line of three dots ({_END}), YAML's end of a document. "
            "Without it, a part of a file that is being written can't be told from the whole: add it"
        )
    return overlay_file.parse_bytes(content, str(path))


def _bug(error: Exception, doing: str) -> str:
    """What people are told of an exception that is not dpmesh's own: its text may quote anything."""
    return f"{type(error).__name__} in dpmesh while it {doing}; report this as a bug"
