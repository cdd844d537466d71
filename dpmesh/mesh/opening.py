"""Opening: reads the configuration and puts a mesh together from its parts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dpmesh import config as configuration
from dpmesh.ledger import Ledger, open_store
from dpmesh.mesh.follower import PolicyFollower
from dpmesh.mesh.mesh import Mesh
from dpmesh.policy import Policy
from dpmesh.telemetry import Telemetry
from dpmesh.v1 import policy_pb2


def open(
    config: str | Path | Mapping[str, Any] | None = None,
    *,
    policy: str | Path | policy_pb2.Policy | None = None,
    clock: Callable[[], float] = time.time,
) -> Mesh:
    """Makes a mesh, to be entered with `async with`.

    Args:
        config: dpmesh.toml's path, or its content as a mapping. None: annotations as the policy, a SQLite ledger in
            the working directory's .dpmesh/, and a daily budget of epsilon 8 per unit and 8 for aggregates.
        policy: The policy, as a file's path or a message; wins over the configuration's [policy] section. Its budgets,
            quotas and mode, if it has any, replace those of the configuration.
        clock: Seconds since 1970, for the budgets' windows and the pseudonyms' epochs; for simulations and tests. On
            PostgreSQL windows follow the database's clock instead.

    Raises:
        ConfigError: The configuration or the policy file is wrong.
    """
    settings = configuration.load(config)
    follower = None
    if policy is None and settings.policy.source:
        follower = PolicyFollower(settings.policy.source, configuration.poll_seconds(settings))
        policy = follower.read()
    # An empty path is a mistake, and must not count as no policy.
    overlays = settings.policy.file or None if policy is None else policy
    rules = Policy(overlays)
    settings = configuration.with_policy(settings, rules.document)
    ledger = Ledger(open_store(settings.ledger.url), configuration.budgets(settings), clock=clock)
    return Mesh(rules, ledger, Telemetry(), settings.mode, grpc=settings.grpc, follower=follower)
