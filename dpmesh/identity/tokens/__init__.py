"""Anonymous tokens: a device proves that it belongs to the fleet without saying which one it is.

Privacy Pass (RFC 9576, RFC 9577, RFC 9578), token type 0x0002: blind RSA signatures (RFC 9474). Three parties:

- The device makes a nonce for each token, blinds it, and has the issuer sign it (`TokenRequestState`, `Wallet`).
- The issuer knows the device, counts its tokens, and signs what it can't read (`TokenKeys`).
- The service checks the token's signature and that it is new (`Verifier`), and gives the channel a ticket for its other
  RPCs (`Tickets`). It does not know which device asked for the token.

Issuer and service can't link a token to a request, even together. For each blinded message that the issuer saw and each
token that the service sees, exactly one blinding factor leads from one to the other, and devices draw it uniformly. So
every token of an epoch fits every request of that epoch, even for an adversary of unlimited power. This holds if

- only the service sees a nonce and only the issuer sees a blinded message, each once. A token that was shown on one
  channel must not be shown on another, which would link the two;
- blinding factors stay in the memory of one process: they are in no file, and a forked child forgets them;
- all devices use one key and one challenge at a time. A key for one device would mark its tokens; devices that want to
  be sure compare the keys they get with those that others get;
- times, addresses, counts and the rest of the channel do not reveal what the token hides. The wallet asks in batches of
  one size, after a random wait; the rest is up to the network.
"""

from dpmesh.identity.tokens.format import (
    PublishedKey,
    Token,
    TokenChallenge,
    decode_key,
    encode_key,
    from_credentials,
    to_credentials,
)
from dpmesh.identity.tokens.keys import TokenKeys
from dpmesh.identity.tokens.tickets import Tickets
from dpmesh.identity.tokens.verifier import Verifier, published_by
from dpmesh.identity.tokens.wallet import HeldToken, TokenRequestState, Wallet, choose_key

__all__ = [
    "HeldToken",
    "PublishedKey",
    "Tickets",
    "Token",
    "TokenChallenge",
    "TokenKeys",
    "TokenRequestState",
    "Verifier",
    "Wallet",
    "choose_key",
    "decode_key",
    "encode_key",
    "from_credentials",
    "published_by",
    "to_credentials",
]
