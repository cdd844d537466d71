"""Consumers: the name under which quotas count the authenticated client of an RPC."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from dpmesh.identity.ca.profile import stable_name

# SPIFFE IDs, section 2: neither the case of the scheme nor that of the trust domain matters, and that of the path does.
_SPIFFE: Final = re.compile(r"(spiffe://[^/]*)(.*)", re.IGNORECASE | re.DOTALL)


class CertificateNames(NamedTuple):
    """What a client's certificate calls its owner; all are empty for a client that is not authenticated.

    Attributes:
        uris: URIs of the subject alternative name.
        dns: DNS names of the subject alternative name.
        emails: Email addresses of the subject alternative name.
        ips: IP addresses of the subject alternative name.
        common_names: Common names of the subject.
    """

    uris: Iterable[bytes] = ()
    dns: Iterable[bytes] = ()
    emails: Iterable[bytes] = ()
    ips: Iterable[bytes] = ()
    common_names: Iterable[bytes] = ()


def consumer_of(certificate: CertificateNames) -> str:
    """The consumer's id, from the best name in a client's certificate.

    A SPIFFE ID is taken as it is, and only from where authorities put them, the certificate's URIs. All other names
    say of which kind they are, so that none poses as another: "uri:", "dns:", "email:", "ip:" or "cn:" comes first.
    Where case means nothing, letters are small, so that a name has one quota however it is written.

    Rotating identities of dpmesh's own authority count as their trust domain: each has a random path, which would give
    its owner a new quota every few minutes.

    Returns:
        The consumer's id; never log it. "" for a client that is not authenticated: all of them are one consumer.
    """
    return next(_best_first(certificate), "")


def _best_first(certificate: CertificateNames) -> Iterator[str]:
    uris = list(_decoded(certificate.uris))
    # Of several SPIFFE IDs the first one counts.
    for uri in uris:
        found = _SPIFFE.fullmatch(uri)
        if found is not None:
            yield stable_name(found[1].lower() + found[2])
    yield from (f"uri:{uri}" for uri in uris)
    yield from (f"dns:{name.lower()}" for name in _decoded(certificate.dns))
    for address in _decoded(certificate.emails):
        mailbox, at, host = address.rpartition("@")
        yield f"email:{mailbox}{at}{host.lower()}"
    yield from (f"ip:{address}" for address in _decoded(certificate.ips))
    yield from (f"cn:{name}" for name in _decoded(certificate.common_names))


def _decoded(names: Iterable[bytes]) -> Iterator[str]:
    for name in names:
        if name:
            yield name.decode(errors="backslashreplace")
