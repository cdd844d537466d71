"""Sources: what `[policy] source` names, and where what was taken from it is kept."""

from __future__ import annotations

import hashlib
from pathlib import Path

from dpmesh.config import Config, max_offline_seconds
from dpmesh.rollout.file_source import FileSource
from dpmesh.rollout.freshness import Freshness
from dpmesh.rollout.last_good import LastGood
from dpmesh.rollout.source import PolicySource


def open_source(settings: Config) -> tuple[PolicySource, Freshness]:
    """Makes the source of policies of a configuration, and what counts the time without an answer.

    Args:
        settings: Its [policy] section has a source.
    """
    policy = settings.policy
    # One folder may serve several programs, each with a source of its own.
    name = hashlib.sha256(policy.source.encode()).hexdigest()[:16]
    folder = Path(policy.cache) if policy.cache else None
    kept = None if folder is None else LastGood(folder / f"{name}.policy")
    answered = None if folder is None else folder / f"{name}.answered"
    return FileSource(policy.source, kept), Freshness(answered, max_offline_seconds(settings))
