"""Opens the source of policies that a URL names."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from dpmesh.errors import ConfigError
from dpmesh.extras import install
from dpmesh.rollout.source import PolicySource

_TUF = "tuf+"
# The largest root.json, in bytes.
_LARGEST_ROOT = 256_000


def open_source(
    url: str,
    *,
    root: str | Path | None,
    cache: str | Path,
    floor: int = 0,
    clock: Callable[[], float] = time.time,
) -> PolicySource:
    """Opens a repository of policies. Nothing is asked of it yet.

    Args:
        url: tuf+file:///folder or tuf+https://host/path.
        root: The root of trust, `[policy] root`: a file root.json that came with the image.
        cache: A folder of this device, which is made where there is none. Images must not have it.
        floor: The least epoch that may be offered: that of the image's policy.
        clock: Seconds since 1970.

    Raises:
        ConfigError: The URL, the root or its file is wrong; or the extra `policy` is not installed.
    """
    if not url.startswith(_TUF):
        raise ConfigError(f"policy.source = {url!r}: write tuf+file:///folder or tuf+https://host/path")
    if not root:
        raise ConfigError("policy.root: a signed repository needs it: the root.json of `dpmesh policy init`")
    try:
        from dpmesh.rollout.tuf_source import TufSource
    except ImportError:
        raise ConfigError(
            f"policy.source: signed repositories need more packages: {install('policy')}"
        ) from None
    try:
        with Path(root).open("rb") as file:
            trusted = file.read(_LARGEST_ROOT)
    except OSError as error:
        raise ConfigError(f"policy.root: {root}: can't be read ({error.strerror})") from None
    return TufSource(
        url.removeprefix(_TUF), root=trusted, cache=Path(cache) / "tuf", floor=floor, clock=clock
    )
