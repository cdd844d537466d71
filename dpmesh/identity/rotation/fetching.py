"""Fetching an identity from a source: in limited time, whatever the source raises, and only if it is usable."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from dpmesh.errors import IdentityError
from dpmesh.identity.identity import Identity, Source

log = logging.getLogger("dpmesh")


async def fetch(source: Source, clock: Callable[[], float], limit: float) -> Identity:
    """Fetches an identity that is valid by the clock. The source may take `limit` seconds.

    Raises:
        IdentityError: The source's own; ISSUER_UNAVAILABLE, with the type of any other exception, or if the source
            takes too long; EXPIRED: the identity is not valid now.
    """
    task = asyncio.current_task()
    cancels = 0 if task is None else task.cancelling()
    try:
        async with asyncio.timeout(limit):
            fetched = await source.fetch()
        _check_time(fetched, clock())
    except IdentityError:
        raise
    except asyncio.CancelledError as error:
        if task is None or task.cancelling() > cancels:
            raise
        kind = type(error).__name__  # Raised by the source: gRPC's calls do so when their channel is closed.
    except Exception as error:  # Its text could quote anything.
        kind = type(error).__name__
    else:
        return fetched
    # Raised outside of the handler, so that the original is not even its context.
    raise IdentityError("ISSUER_UNAVAILABLE", f"the source of identities failed ({kind})")


def differs(fetched: Identity, in_force: Identity, follows: bool) -> bool:
    """Whether a fetched identity differs from the one in force, or has other roots.

    Raises:
        IdentityError: ISSUER_UNAVAILABLE: both have the same key, though the source does not follow anybody.
    """
    same_key = fetched.key == in_force.key
    if same_key and not follows:
        raise IdentityError("ISSUER_UNAVAILABLE", "the source gave the key that is in force once more")
    if same_key and fetched.certificates != in_force.certificates:
        log.warning(
            "a new certificate has the key of the one before: peers can tell that they belong together"
        )
    parts = (fetched.certificates, fetched.trust_bundle)
    return not same_key or parts != (in_force.certificates, in_force.trust_bundle)


def _check_time(fetched: Identity, now: float) -> None:
    if not now < fetched.not_after:
        raise IdentityError("EXPIRED", "the source gave an identity that is over by this machine's clock")
    if not fetched.not_before <= now:
        raise IdentityError(
            "EXPIRED", "the source gave an identity that is not valid yet by this machine's clock"
        )
