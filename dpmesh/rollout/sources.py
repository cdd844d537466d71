"""Sources: what `[policy] source` names, and where what was taken from it is kept."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Callable
from pathlib import Path

from dpmesh import extras
from dpmesh.config import Config, max_offline_seconds
from dpmesh.config.model import SIGNED
from dpmesh.errors import ConfigError
from dpmesh.rollout.file_source import FileSource
from dpmesh.rollout.freshness import Freshness
from dpmesh.rollout.held import Held
from dpmesh.rollout.last_good import LastGood
from dpmesh.rollout.source import PolicySource

# The largest root.json, in bytes.
_LARGEST_ROOT = 256_000


def open_source(
    settings: Config, *, floor: int, clock: Callable[[], float]
) -> tuple[PolicySource, Freshness, Held]:
    """Makes the source of policies of a configuration, what counts the time without an answer, and what is held.

    Nothing is asked of the source yet.

    Args:
        settings: Its [policy] section has a source.
        floor: The least epoch that may be offered: that of the image's policy.
        clock: Seconds since 1970.

    Raises:
        ConfigError: The URL or the root of trust is wrong; other users may write to the cache's folder; or the extra
            `policy` is not installed.
    """
    policy = settings.policy
    # One folder may serve several programs, each with a source of its own.
    name = hashlib.sha256(policy.source.encode()).hexdigest()[:16]
    folder = policy.folder
    if folder is not None:
        _check_folder(folder)
        _check_folder(folder / name)
    answered = None if folder is None else folder / f"{name}.answered"
    freshness = Freshness(answered, max_offline_seconds(settings), clock)
    held = Held(None if folder is None else folder / f"{name}.held")
    if policy.is_signed:
        if folder is None:
            raise ConfigError('policy.cache = "memory:": a signed repository needs a folder')
        return _signed(policy.source, policy.root, folder / name, floor, clock), freshness, held
    kept = None if folder is None else LastGood(folder / f"{name}.policy")
    return FileSource(policy.source, kept), freshness, held


def _check_folder(folder: Path) -> None:
    """Checks that no other user may put a policy into the cache, or remove what was taken last.

    Raises:
        ConfigError: Another user may.
    """
    try:
        mode = folder.stat().st_mode
    except OSError:  # It is made when something is stored; what is wrong with it is said then.
        return
    if mode & stat.S_IWOTH:
        raise ConfigError(
            f"policy.cache: {folder}: other users may write it, and so put another policy in force: run "
            "`chmod o-w` on it, or name a folder in it"
        )


def _signed(source: str, root: str, folder: Path, floor: int, clock: Callable[[], float]) -> PolicySource:
    if not root:
        raise ConfigError("policy.root: a signed repository needs it: the root.json of `dpmesh policy init`")
    try:
        from dpmesh.rollout.tuf_source import TufSource
    except ImportError:
        raise ConfigError(
            f"policy.source: signed repositories need more packages: {extras.install('policy')}"
        ) from None
    try:
        with Path(root).open("rb") as file:
            trusted = file.read(_LARGEST_ROOT)
    except OSError as error:
        raise ConfigError(f"policy.root: {root}: can't be read ({error.strerror})") from None
    return TufSource(source.removeprefix(SIGNED), root=trusted, cache=folder, floor=floor, clock=clock)
