"""Opening: reads the configuration and puts a mesh together from its parts."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dpmesh import config as configuration
from dpmesh.config import Config
from dpmesh.errors import ConfigError, DpmeshError, PolicyUnavailableError
from dpmesh.ledger import Ledger, open_store
from dpmesh.mesh.follower import PolicyFollower
from dpmesh.mesh.mesh import Mesh
from dpmesh.mesh.snapshot import PolicySnapshot
from dpmesh.policy import Policy
from dpmesh.rollout import sources
from dpmesh.rollout.source import Offer, PolicySource
from dpmesh.telemetry import Telemetry
from dpmesh.v1 import policy_pb2

log = logging.getLogger("dpmesh")


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
        follower, rules = _followed(settings, clock)
    else:
        # An empty path is a mistake, and must not count as no policy.
        rules = Policy(settings.policy.file or None if policy is None else policy)
    decided = configuration.with_policy(settings, rules.document)
    ledger = Ledger(open_store(settings.ledger.url), configuration.budgets(decided), clock=clock)
    return Mesh(
        rules, ledger, Telemetry(), decided.mode, grpc=settings.grpc, follower=follower, settings=settings
    )


def _followed(settings: Config, clock: Callable[[], float]) -> tuple[PolicyFollower, Policy]:
    """What follows the policy's source, and the policy to begin with.

    Raises:
        ConfigError: There is no policy to begin with, or the configuration is wrong.
    """
    floor = Policy(settings.policy.file) if settings.policy.file else None
    least = 0 if floor is None else floor.document.epoch
    beginnings: list[tuple[Offer | None, Policy]]
    source, freshness, held = sources.open_source(settings, floor=least, clock=clock)
    try:
        offers = source.first()
    except PolicyUnavailableError as error:
        if floor is None:
            offers = [_asked(source, error)]
        else:
            log.error("policy: %s is used: %s", settings.policy.file, error)  # noqa: TRY400 - a trace is no help
            offers = []
    beginnings = [(offer, Policy(offer.document)) for offer in offers if offer.document.epoch >= least]
    # What this device has taken is not gone back behind, whatever is wrong with it.
    if floor is not None and not any(offer.taken and offer.document.epoch > least for offer in offers):
        beginnings.append((None, floor))
    fit = [each for each in beginnings if _fits(each[1], settings)]
    first, rules = (fit or beginnings)[0]
    follower = PolicyFollower(
        source,
        configuration.poll_seconds(settings),
        freshness,
        first=first,
        held=held,
        has_taken=source.has_taken(),
    )
    follower.push = settings.policy.push
    follower.folder = settings.policy.folder
    return follower, rules


def _asked(source: PolicySource, why: PolicyUnavailableError) -> Offer:
    """The first policy of a device that has none: its source is asked before anything can leave.

    Raises:
        ConfigError: There is none.
    """
    offer = None
    if source.signed:
        try:
            # A loop may run in this thread.
            with ThreadPoolExecutor(1) as pool:
                offer = pool.submit(asyncio.run, source.fetch()).result()
        except DpmeshError as error:
            raise ConfigError(str(error)) from None
    if offer is None:
        raise ConfigError(str(why))
    return offer


def _fits(policy: Policy, settings: Config) -> bool:
    """Whether a mesh can begin with a policy, as far as modules are imported."""
    try:
        budgets = configuration.budgets(configuration.with_policy(settings, policy.document))
        PolicySnapshot(policy, budgets).compile_loaded()
    except DpmeshError as error:
        log.error("a policy does not fit this process: %s", error)  # noqa: TRY400 - a trace is no help
        return False
    return True
