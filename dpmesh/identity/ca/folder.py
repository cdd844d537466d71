"""Folder: an authority and its issuer's records on disk, for the command line.

    root.pem          the trust bundle: the roots that peers trust
    root.key          the root's key; keep it elsewhere, since only a new intermediate needs it
    intermediate.pem  the intermediate, then the previous ones
    intermediate.key  the intermediate's key
    issuer.db         see dpmesh.identity.ca.records

The files (0600) and the folder (0700) are for their owner only.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from dpmesh import files
from dpmesh.errors import ConfigError, IdentityError
from dpmesh.identity.ca.authority import Authority, Root
from dpmesh.identity.ca.enrolment import Enrolments
from dpmesh.identity.ca.records import check_private

ROOTS, ROOT_KEY = "root.pem", "root.key"
INTERMEDIATES, INTERMEDIATE_KEY = "intermediate.pem", "intermediate.key"
RECORDS = "issuer.db"


class Folder(NamedTuple):
    """What an issuer needs of a folder. The caller closes the records."""

    authority: Authority
    enrolments: Enrolments


def create_folder(
    path: str | os.PathLike[str], trust_domain: str, *, now: float, password: bytes | None = None
) -> None:
    """Makes a root, an intermediate and empty records, in a folder that does not exist yet, or is empty.

    The password encrypts root.key. The time is in seconds since 1970.

    Raises:
        ConfigError: The folder is not empty, or the trust domain is no host name.
        OSError: The folder can't be written.
    """
    root = Root.create(trust_domain, now=now)
    authority = root.sign_intermediate(now=now)
    folder = Path(path)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty: an authority needs a folder of its own")
    folder.chmod(0o700)
    files.write(folder / ROOT_KEY, root.key(password))
    _save(folder, authority)
    Enrolments.create(folder / RECORDS).close()
    files.sync_folder(folder)


def open_folder(path: str | os.PathLike[str]) -> Folder:
    """Opens a folder; root.key need not be there.

    Raises:
        IdentityError: MALFORMED or UNTRUSTED: a file is missing, damaged or open to other users, or the files don't
            belong together.
    """
    folder = Path(path)
    return Folder(_load(folder), Enrolments(folder / RECORDS))


def open_root(path: str | os.PathLike[str], password: bytes | None = None) -> Root:
    """Returns the root whose key is in the folder.

    Raises:
        IdentityError: MALFORMED: a file is missing or damaged, the password is wrong, or no root has this key.
    """
    folder = Path(path)
    key = _read(folder / ROOT_KEY)
    for certificate in _certificates(_read(folder / ROOTS)):
        with suppress(IdentityError):
            return Root.load(certificate, key, password)
    raise IdentityError("MALFORMED", f"{folder / ROOT_KEY} is no root's key, or its password is another")


def add_root(path: str | os.PathLike[str], root: Root) -> Authority:
    """Adds a root, the first half of a roll-over: every certificate that is issued from now on brings it to a peer.

    The new root's key is not kept here. Wait one life of a leaf before the second half, `replace_intermediate`.

    Raises:
        IdentityError: UNTRUSTED: the root is of another trust domain. MALFORMED: see `open_folder`.
    """
    folder = Path(path)
    authority = _load(folder).trusting(root.certificate)
    _save(folder, authority)
    return authority


def replace_intermediate(path: str | os.PathLike[str], root: Root, *, now: float) -> Authority:
    """Replaces the intermediate: the second half of a roll-over, or a renewal under an old root.

    Devices notice nothing. The root that signs must have been added before. The time is in seconds since 1970.

    Raises:
        IdentityError: UNTRUSTED: the root was not added before. EXPIRED: the root has expired. MALFORMED: see
            `open_folder`.
    """
    folder = Path(path)
    authority = _load(folder)
    if root.certificate not in _certificates(authority.trust_bundle):
        raise IdentityError("UNTRUSTED", "the root was not added to the folder: peers don't know it yet")
    authority = authority.followed_by(root.sign_intermediate(now=now))
    _save(folder, authority)
    return authority


def _load(folder: Path) -> Authority:
    names = (INTERMEDIATES, INTERMEDIATE_KEY, ROOTS)
    return Authority.load(*(_read(folder / name) for name in names))


def _save(folder: Path, authority: Authority) -> None:
    parts = {
        ROOTS: authority.trust_bundle,
        INTERMEDIATE_KEY: authority.key(),
        INTERMEDIATES: authority.certificates,
    }
    files.write_all({folder / name: data for name, data in parts.items()})


def _certificates(pem: bytes) -> list[bytes]:
    end = b"-----END CERTIFICATE-----\n"
    return [part + end for part in pem.split(end) if part]


def _read(path: Path) -> bytes:
    check_private(path)
    return path.read_bytes()
