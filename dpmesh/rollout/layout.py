"""How a repository of signed policies names its roles, targets and files. Nothing here imports python-tuf."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

_T = TypeVar("_T")

POLICY = "policy"
"""The target that is the newest policy, without its suffix."""

FORMER = "former"
"""The target that devices outside of the ring take, without its suffix."""

SUFFIXES = (".yaml", ".yml", ".json")
"""What the name of a policy may end with."""

RINGS = "rings"
"""The role that chooses which part of the fleet takes a policy."""

RING_FILE = "ring.json"
"""The only target that the role "rings" may have."""


def named(targets: Mapping[str, _T], name: str) -> list[_T]:
    """The targets with a name and any suffix that a policy may have.

    Args:
        targets: By path.
        name: `POLICY` or `FORMER`.
    """
    return [targets[name + suffix] for suffix in SUFFIXES if name + suffix in targets]


def target_file(repository: Path, path: str, sha256: str) -> Path:
    """The file of a target.

    Args:
        repository: The folder with `metadata` and `targets`.
        path: The target's.
        sha256: The digest of its content, in hex.
    """
    return repository / "targets" / f"{sha256}.{path}"
