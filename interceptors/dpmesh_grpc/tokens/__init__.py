"""Anonymous authorisation of channels: a token for the first RPC of a channel, a ticket for all others.

Client: `grpc.aio.insecure_channel(target, interceptors=token_interceptors(wallet))`, or the same with a rotating
channel: each identity then redeems a token of its own, because nothing may be shown under two identities.
Server: `grpc.aio.server(interceptors=[token_interceptor(verifier), ...])`.

What this does not hide: the client's address and whatever else its connection shows, when RPCs happen and how long they
are, and what they say. See `dpmesh.identity.tokens` for what it hides, and on what conditions.
"""

from dpmesh_grpc.tokens.client import token_interceptors
from dpmesh_grpc.tokens.issuing import issuer_keys, token_request
from dpmesh_grpc.tokens.server import token_interceptor

__all__ = ["issuer_keys", "token_interceptor", "token_interceptors", "token_request"]
