"""Server credentials that follow an identity's rotation, and the channel arguments that belong to them.

gRPC asks for the certificate before each handshake, on threads of its own. If it gets a bad one or an exception, it
keeps the old one without a log entry. So certificates are checked here first.
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

log = logging.getLogger("dpmesh.grpc")

# Parts of a certificate's life after which a connection is asked to end, and after which it is cut.
_AGE: Final = 1 / 2
_GRACE: Final = 1 / 4
_LEAST_MS: Final = 1000


def rotating_server_credentials(identity: RotatingIdentity) -> grpc.ServerCredentials:
    """Credentials of a server whose certificate and trust bundle follow an identity's rotation.

    Clients must present a certificate that the trust bundle has signed. While no identity is valid, all handshakes
    fail. Connections that exist go on: give the server `peer_expiry.peer_interceptor` and `server_options` too.

    Args:
        identity: An opened identity with a server's certificate, open for longer than the server.

    Raises:
        IdentityError: The identity is not open, has ended, or is bad.
    """
    first = identity.current
    _check(first)
    return grpc.dynamic_ssl_server_credentials(
        _configuration(first), _Fetcher(identity, first), require_client_authentication=True
    )


def server_options(identity: RotatingIdentity) -> tuple[tuple[str, Any], ...]:
    """Channel arguments that end a server's connections before the certificates that they were made with.

    gRPC asks a connection to end after half of a certificate's life, and cuts it after three quarters, give or take a
    tenth. It cuts longer RPCs too. Peers' certificates are taken to live as long as the server's own.

    Args:
        identity: The server's identity.

    Raises:
        IdentityError: The identity is not open, or has ended.
    """
    current = identity.current
    life_ms = (current.not_after - current.obtained) * 1000
    return (
        ("grpc.max_connection_age_ms", max(_LEAST_MS, int(life_ms * _AGE))),
        ("grpc.max_connection_age_grace_ms", max(_LEAST_MS, int(life_ms * _GRACE))),
    )


class _Fetcher:
    """Gives gRPC a new configuration when the identity has changed since `first`, or ended."""

    def __init__(self, identity: RotatingIdentity, first: Identity) -> None:
        self._identity = identity
        self._telemetry = IdentityTelemetry(lambda: None)
        self._lock = threading.Lock()
        self._served: Identity | None = first  # None while handshakes are refused.
        self._bad: Identity | None = None  # The last one that failed the check.

    def __call__(self) -> Any:
        """The configuration that gRPC uses from now on, or None to keep the one before."""
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
        except Exception:  # gRPC would ignore it.
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
    """A configuration with which no handshake succeeds, because gRPC can't be told to refuse handshakes.

    No peer trusts this certificate, and no peer has one that it has signed: it ended long ago and its key is dropped.
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
