"""FileSource: policies from a plain file that people edit."""

from __future__ import annotations

import asyncio
import logging
import os
import stat
import threading
from functools import partial
from pathlib import Path

from dpmesh import forks
from dpmesh.errors import ConfigError, PolicyUnavailableError
from dpmesh.policy import overlay_file
from dpmesh.rollout import bounded_thread
from dpmesh.rollout.last_good import LastGood
from dpmesh.rollout.source import LARGEST_DOCUMENT, Offer, State, is_older
from dpmesh.v1 import policy_pb2

log = logging.getLogger("dpmesh")

# What ends a document in YAML.
_END = "..."
# How many seconds a read may take. A network mount may never answer.
_PATIENCE = 10.0
_THREAD = "dpmesh policy file"


class FileSource:
    """Reads a policy file and compares its content with what it read before.

    It compares contents, not times: a file that is replaced within one tick of the file system's clock, or by way of a
    symbolic link, as Kubernetes does with ConfigMaps, is noticed.

    Args:
        path: A .yaml, .yml or .json file.
        kept: Where the policy that was taken last is kept; None: nowhere.

    Attributes:
        name: The path.
        signed: False.
        state: FRESH if the file could be read last.
    """

    signed = False

    def __init__(self, path: str | Path, kept: LastGood | None = None) -> None:
        self.name = str(path)
        self.state = State.STALE
        self._path = Path(path)
        self._kept = kept
        self._content: bytes | None = None
        # Why the content is no policy; "" if it is one.
        self._unfit = ""
        self._reading = threading.Lock()
        forks.register(self)

    def after_fork_in_child(self) -> None:
        """Forgets a read of the parent, whose thread the child does not have."""
        self._reading = threading.Lock()

    def first(self) -> list[Offer]:
        """The policy in the file, and then the one that was taken last; that one alone if the file's is older.

        Raises:
            PolicyUnavailableError: The file can't be read or is no policy, and none was taken before.
            ConfigError: What was taken last can't be read.
        """
        kept = None if self._kept is None else self._kept.load()
        last = [] if kept is None else [self._kept_offer(kept)]
        try:
            content = bounded_thread.start(self._read_alone, _THREAD).result(_PATIENCE)
            self.state = State.FRESH
            offer = Offer(_parse(content, self._path), content)
        except (ConfigError, PolicyUnavailableError, TimeoutError) as error:
            why = self._late() if isinstance(error, TimeoutError) else str(error)
            if not last:
                raise PolicyUnavailableError(why) from None
            log.error("the policy that was taken last is used: %s", why)  # noqa: TRY400 - a trace is no help
            return last
        if last and is_older(offer.document, last[0].document):
            log.error(
                "the policy that was taken last is used: policy file %s: epoch: %d is not larger than %d",
                self.name,
                offer.document.epoch,
                last[0].document.epoch,
            )
            return last
        return [offer, *last]

    def has_taken(self) -> bool:
        """Whether a policy of this file was taken before and kept."""
        return self._kept is not None and self._kept.epoch() is not None

    async def fetch(self) -> Offer | None:
        """The policy in the file, if its content is another one than that of the last fetch.

        Raises:
            ConfigError: The content is no policy, or may be a part of one.
            PolicyUnavailableError: The file can't be read.
        """
        self.state = State.STALE
        try:
            content = await bounded_thread.run(self._read_alone, _PATIENCE, _THREAD)
        except TimeoutError:
            raise PolicyUnavailableError(self._late()) from None
        self.state = State.FRESH
        if content != self._content:
            offer, unfit = None, ""
            try:
                offer = Offer(await asyncio.to_thread(_parse, content, self._path), content)
            except ConfigError as error:
                unfit = str(error)
            self._content, self._unfit = content, unfit
            if offer is not None:
                return offer
        if self._unfit:
            raise ConfigError(self._unfit)
        return None

    def keep(self, offer: Offer) -> None:
        """Makes an offer durable.

        Raises:
            ConfigError: A newer one is stored, or another one with this epoch.
            DpmeshError: It can't be stored now.
        """
        if self._kept is not None:
            self._kept.store(offer.document.epoch, offer.content, partial(self._check_newer, offer))

    def _check_newer(self, offer: Offer, kept: bytes) -> None:
        """Refuses an offer that is older than what is kept.

        Raises:
            ConfigError: It is.
        """
        before = self._kept_offer(kept).document
        if is_older(offer.document, before):
            raise ConfigError(
                f"policy: epoch: {offer.document.epoch} is not larger than {before.epoch}, which was taken before, "
                "here or by another process"
            )

    def _kept_offer(self, content: bytes) -> Offer:
        document = overlay_file.parse_bytes(content, f"{self.name} (as it was taken last)")
        return Offer(document, content, taken=True)

    def _read_alone(self) -> bytes:
        """Reads the file, unless a read before hangs.

        Raises:
            PolicyUnavailableError: As of `_read`, or a read hangs.
        """
        if not self._reading.acquire(blocking=False):
            raise PolicyUnavailableError(self._late())
        try:
            return _read(self._path)
        finally:
            self._reading.release()

    def _late(self) -> str:
        return f"policy file {self.name}: reading it takes too long"


def _read(path: Path) -> bytes:
    """The content of a policy file, or the beginning of one that is too large.

    Raises:
        PolicyUnavailableError: It can't be read, or is no file: a named pipe may never answer.
    """
    try:
        # O_NONBLOCK: opening a pipe would wait for a writer.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return file.read(LARGEST_DOCUMENT + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or type(error).__name__
        raise PolicyUnavailableError(f"policy file {path}: can't be read ({why})") from None
    raise PolicyUnavailableError(f"policy file {path}: is no regular file, and can't be followed")


def _parse(content: bytes, path: Path) -> policy_pb2.Policy:
    """The policy in a content that is whole.

    A writer may be in the middle of the file, or have died there, and a part of a policy is a policy with fewer rules.

    Raises:
        ConfigError: It may be a part of a policy, or it is none.
    """
    if len(content) > LARGEST_DOCUMENT:
        raise ConfigError(
            f"policy file {path}: is larger than {LARGEST_DOCUMENT // 1000} kB, which no policy that is followed may be"
        )
    check_end(content, path)
    return overlay_file.parse_bytes(content, str(path))


def check_end(content: bytes, path: Path) -> None:
    """Checks that a policy that is followed has its end.

    Raises:
        ConfigError: It may be a part of a policy.
    """
    lines = content.decode(errors="replace").splitlines()
    last = next((line for line in reversed(lines) if line.strip()), "")
    # A text in braces has its end in itself.
    if last.rstrip() != _END and not content.lstrip().startswith(b"{"):
        raise ConfigError(
            f"policy file {path}: does not end with a line of three dots ({_END}), YAML's end of a document. "
            "Without it, a part of a file that is being written can't be told from the whole: add it"
        )
