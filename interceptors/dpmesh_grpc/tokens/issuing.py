"""Asks an issuer for the keys of anonymous tokens, and for tokens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence

from dpmesh.identity import RotatingIdentity
from dpmesh.identity.ca.proof import SIGN_TOKENS, prove
from dpmesh.identity.tokens.format import PublishedKey, TokenChallenge
from dpmesh.identity.tokens.verifier import Fetch
from dpmesh.identity.tokens.wallet import HeldToken, Refill, TokenRequestState, choose_key
from dpmesh.v1.identity_pb2 import (
    GetTokenKeysRequest,
    GetTokenKeysResponse,
    SignTokensRequest,
    SignTokensResponse,
)
from dpmesh_grpc.issuer.channel import TIMEOUT, ask


def issuer_keys(target: str, identity: RotatingIdentity, *, timeout: float = TIMEOUT) -> Fetch:
    """A function that fetches an issuer's public keys of anonymous tokens, for a `Verifier` or for a comparison.

    Each fetch has a connection of its own and does not say who asks: an issuer can't give one device another key.

    Args:
        target: The issuer's address, "host:port".
        identity: An opened identity, whose roots check the issuer's certificate.
        timeout: How long to wait for the issuer, in seconds.
    """

    async def fetch() -> Sequence[PublishedKey]:
        response: GetTokenKeysResponse = await ask(
            target,
            identity.current.trust_bundle,
            lambda stub: stub.GetTokenKeys(GetTokenKeysRequest(), timeout=timeout),
        )
        return [PublishedKey(key.public_key, key.not_before, key.not_after) for key in response.keys]

    return fetch


def token_request(
    target: str,
    identity: RotatingIdentity,
    challenge: TokenChallenge,
    *,
    timeout: float = TIMEOUT,
    clock: Callable[[], float] = time.time,
) -> Refill:
    """A function that fetches blind signatures from an issuer and makes tokens of them, for a `Wallet`.

    The device proves its identity to the issuer with the certificate in force.

    Args:
        target: The issuer's address, "host:port".
        identity: The device's opened identity.
        challenge: What the tokens are for.
        timeout: How long to wait for each of the issuer's answers, in seconds.
        clock: Seconds since 1970.
    """
    fetch = issuer_keys(target, identity, timeout=timeout)

    async def refill(count: int) -> Iterable[HeldToken]:
        key = choose_key(await fetch(), clock())
        state = await asyncio.to_thread(TokenRequestState, key, challenge, count)
        request = SignTokensRequest(
            truncated_token_key_id=state.truncated_key_id, blinded_messages=state.blinded_messages
        )
        prove(SIGN_TOKENS, request, identity.current, clock())

        response: SignTokensResponse = await ask(
            target, identity.current.trust_bundle, lambda stub: stub.SignTokens(request, timeout=timeout)
        )
        return state.finalize(response.blind_signatures)

    return refill
