"""Anonymous tokens: a device proves that it belongs to the fleet without saying which one it is.

Privacy Pass (RFC 9576, RFC 9577, RFC 9578), token type 0x0002: blind RSA signatures (RFC 9474). Three parties:

- The device makes a nonce for each token, blinds it, and has the issuer sign it (`TokenRequestState`, `Wallet`).
- The issuer knows the device, counts its tokens, and signs what it can't read (`TokenKeys`).
- The service sees the token, checks the signature and that it comes for the first time (`Verifier`), and gives the
  channel a ticket for the RPCs to come (`Tickets`). It knows nothing of who asked for the token.

Why issuer and service together can't link the two: for each blinded message that the issuer saw and each token that
the service sees there is exactly one blinding factor that leads from one to the other, and devices draw it uniformly.
So whatever the two compare, every token of an epoch fits every request of that epoch, also for an adversary of
unlimited power. This holds as long as

- a nonce goes to the service alone and a blinded message to the issuer alone, each once: a token that was shown on one
  channel must not be shown on another, which would tie the two together;
- blinding factors stay in the memory of one process: hence no files, and nothing for a forked child;
- all devices use the same key and the same challenge at a time. A key for one device would mark its tokens; devices
  that want to be sure compare the keys they are given with what others see;
- times, addresses, counts and the rest of the channel do not give away what the token hides. The wallet asks in batches
  of one size and waits at random before it does; the rest is the network's.
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
