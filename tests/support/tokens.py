"""Anonymous tokens for tests: a clock, a challenge, tokens that were issued, and why something was refused."""

import pytest

from dpmesh.errors import IdentityError
from dpmesh.identity.tokens import TokenChallenge, TokenRequestState

DAY = 86_400
START = 20_000 * DAY
CHALLENGE = TokenChallenge("issuer.fleet.test", "telemetry.fleet.test")


class Clock:
    """A clock that the test sets."""

    def __init__(self, now=START + 1000.0):
        self.now = now

    def __call__(self):
        return self.now


def reason(function, *args, **kwargs):
    """Why it was refused."""
    with pytest.raises(IdentityError) as caught:
        function(*args, **kwargs)
    return caught.value.reason


async def refusal(awaitable):
    with pytest.raises(IdentityError) as caught:
        await awaitable
    return caught.value.reason


def issued(keys, count=1, challenge=CHALLENGE, now=START + 1000.0):
    """Tokens, as a device gets them."""
    state = TokenRequestState(keys.current(now), challenge, count)
    return state.finalize([keys.sign(state.truncated_key_id, m) for m in state.blinded_messages])
