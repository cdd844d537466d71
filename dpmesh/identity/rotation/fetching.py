"""Asking a source for an identity: in limited time, whatever it raises, and taking only what is of use."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from dpmesh.errors import IdentityError
from dpmesh.identity.identity import Identity, Source

log = logging.getLogger("dpmesh")


async def ask(source: Source, clock: Callable[[], float], limit: float) -> Identity:
    """What a source gives, if it is valid by the clock and was given in time.

    Args:
        source: Any.
        clock: Seconds since 1970.
        limit: The longest that it may take, in seconds.

    Raises:
        IdentityError: The source's own, or one that names the type of what else it raised, or EXPIRED.
    """
    task = asyncio.current_task()
    cancels = 0 if task is None else task.cancelling()
    try:
        async with asyncio.timeout(limit):
            found = await source.fetch()
        _check_time(found, clock())
    except IdentityError:
        raise
    except asyncio.CancelledError as error:
        if task is None or task.cancelling() > cancels:
            raise
        kind = type(error).__name__  # The source's own: gRPC's calls raise it when their channel is closed.
    except Exception as error:  # Its text could quote anything.
        kind = type(error).__name__
    else:
        return found
    # Raised outside of the handler, so that the original is not even its context.
    raise IdentityError("ISSUER_UNAVAILABLE", f"the source of identities failed ({kind})")


def differs(found: Identity, held: Identity, follows: bool) -> bool:
    """Whether an identity is another than the one in force, or has other roots.

    Args:
        found: What the source gave.
        held: The one in force.
        follows: Whether the source follows what somebody else decides.

    Raises:
        IdentityError: ISSUER_UNAVAILABLE: it has the same key, though the source should have made another.
    """
    same_key = found.key == held.key
    if same_key and not follows:
        raise IdentityError("ISSUER_UNAVAILABLE", "the source gave the key that is in force once more")
    if same_key and found.certificates != held.certificates:
        log.warning(
            "a new certificate has the key of the one before: peers can tell that they belong together"
        )
    return not same_key or (found.certificates, found.trust_bundle) != (held.certificates, held.trust_bundle)


def _check_time(found: Identity, now: float) -> None:
    if not now < found.not_after:
        raise IdentityError("EXPIRED", "the source gave an identity that is over by this machine's clock")
    if not found.not_before <= now:
        raise IdentityError(
            "EXPIRED", "the source gave an identity that is not valid yet by this machine's clock"
        )
