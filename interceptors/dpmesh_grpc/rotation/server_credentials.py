"""Server credentials that follow an identity's rotation, and what a server is to be told besides.

gRPC asks for the certificate before each handshake, on threads of its own. It keeps the one before when it gets a bad
one, or an exception, and says so nowhere: so what it gets is checked here.
"""

from __future__ import annotations

import logging
import threading
import time
from datetime import UTC, datetime
from typing import Any, Final

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from dpmesh.errors import IdentityError
from dpmesh.identity import Identity
from dpmesh.identity.keys import key_pem, new_key
from dpmesh.identity.rotation.rotating_identity import RotatingIdentity
from dpmesh.telemetry.identity import IdentityTelemetry
from dpmesh_grpc.rotation.peer_expiry import peer_interceptor

__all__ = ["peer_interceptor", "rotating_server_credentials", "server_options"]

log = logging.getLogger("dpmesh.grpc")

# Parts of a certificate's life after which a connection is asked to end, and after which it is cut.
_AGE: Final = 1 / 2
_GRACE: Final = 1 / 4
_LEAST_MS: Final = 1000


def rotating_server_credentials(identity: RotatingIdentity) -> grpc.ServerCredentials:
    """Credentials of a server whose certificate and trust bundle follow an identity's rotation.

    Clients must present a certificate of the trust bundle. While no identity is valid, all handshakes fail.
    Connections that exist go on: give the server `peer_interceptor` and `server_options` too.

    Args:
        identity: An opened identity with a server's certificate, open for longer than the server.

    Raises:
        IdentityError: It is not open, over, or bad.
    """
    first = identity.current
    _check(first)
    return grpc.dynamic_ssl_server_credentials(
        _configuration(first), _Fetcher(identity, first), require_client_authentication=True
    )


def server_options(identity: RotatingIdentity) -> tuple[tuple[str, Any], ...]:
    """Channel arguments for a server whose connections are not to outlive the certificates they were made with.

    A connection is asked to end after half of a certificate's life and cut after three quarters, give or take the
    tenth by which gRPC spreads them. RPCs longer than that are cut too. Peers' certificates are taken to live as long
    as the server's own.

    Args:
        identity: The server's.

    Raises:
        IdentityError: It is not open, or over.
    """
    current = identity.current
    life_ms = (current.not_after - current.obtained) * 1000
    return (
        ("grpc.max_connection_age_ms", max(_LEAST_MS, int(life_ms * _AGE))),
        ("grpc.max_connection_age_grace_ms", max(_LEAST_MS, int(life_ms * _GRACE))),
    )


class _Fetcher:
    """Gives gRPC a new configuration when the identity changed, or when there is none any more.

    Args:
        identity: The server's.
        first: What gRPC was given to begin with.
    """

    def __init__(self, identity: RotatingIdentity, first: Identity) -> None:
        self._identity = identity
        self._telemetry = IdentityTelemetry(lambda: None)
        self._lock = threading.Lock()
        self._served: Identity | None = first  # None while handshakes are refused.
        self._bad: Identity | None = None  # The last that was not fit to serve.

    def __call__(self) -> Any:
        """What gRPC is to use from now on, or None for what it has."""
        with self._lock:
            try:
                current = self._identity.current
            except IdentityError:
                return self._refuse("the server's identity is over")
            if current is self._served:
                return None
            if current is not self._bad:
                if self._is_good(current):
                    self._served = current
                    return _configuration(current)
                self._bad = current
            if self._served is not None and not time.time() < self._served.not_after:
                return self._refuse("the last good server certificate is over")
            return None

    def _is_good(self, identity: Identity) -> bool:
        try:
            _check(identity)
        except IdentityError as error:
            reason = error.reason
        except Exception:  # Raised to gRPC, it would change nothing and be noticed by nobody.
            reason = "MALFORMED"
        else:
            return True
        log.error("a new server certificate is bad [%s]; the one before stays until it is over", reason)
        self._telemetry.refresh()
        self._telemetry.failed(reason)
        return False

    def _refuse(self, why: str) -> Any:
        if self._served is None:
            return None
        log.error("%s: all handshakes fail until there is a new one", why)
        self._served = None
        return _nothing()


def _check(identity: Identity) -> None:
    Identity.load(identity.certificates, identity.key, identity.trust_bundle, time.time())


def _configuration(identity: Identity) -> Any:
    return grpc.ssl_server_certificate_configuration(
        [(identity.key, identity.certificates)], identity.trust_bundle
    )


def _nothing() -> Any:
    """A configuration with which no handshake succeeds.

    gRPC can't be told to refuse. But no peer trusts this certificate, and none has one that it has signed: its key is
    forgotten here, and it ended long ago.
    """
    key, name = new_key(), x509.Name([])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.fromtimestamp(0, UTC))
        .not_valid_after(datetime.fromtimestamp(1, UTC))
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )
    return grpc.ssl_server_certificate_configuration([(key_pem(key), certificate)], certificate)
