"""Ed25519 keys in PEM files, which sign checkpoints; and files that are written once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dpmesh import files
from dpmesh.cli.console import InputError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey


def private(path: Path, *, make: bool) -> Ed25519PrivateKey:
    """The private key of a PEM file. With `make`, a missing file is made first.

    Raises:
        InputError: It can't be read or made.
    """
    return _make(path) if make and not path.exists() else _read_private(path)


def _read_private(path: Path) -> Ed25519PrivateKey:
    """The private key of a PEM file without a password; anything else raises InputError."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data = read(path)
    try:
        key = load_pem_private_key(data, password=None)
    except TypeError:
        raise InputError(
            f"{path}: has a password, which nobody could type in a cron job; keep it without"
        ) from None
    except Exception:  # what cryptography raises depends on the content
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(
            f"{path}: not an Ed25519 private key in PEM (--new-key makes one where there is no file)"
        )
    return key


def read_public(path: Path) -> Ed25519PublicKey:
    """The public key of a PEM file.

    Raises:
        InputError: It can't be read, or is something else.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    data = read(path)
    try:
        key = load_pem_public_key(data)
    except Exception:  # what cryptography raises depends on the content
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise InputError(
            f"{path}: not an Ed25519 public key in PEM (`dpmesh ledger checkpoint` writes FILE.pub)"
        )
    return key


def _make(path: Path) -> Ed25519PrivateKey:
    """Makes a key, readable by its owner only, and its public key beside it, FILE.pub. It replaces no file."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    # The public key comes first. If the private one fails, nobody misses it; a private key alone would lack it.
    write_once(public_of(path), public, 0o644)
    try:
        write_once(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)
    except InputError:
        public_of(path).unlink(missing_ok=True)
        raise
    return key


def public_of(path: Path) -> Path:
    """Where the public key of a private one is written."""
    return path.with_name(path.name + ".pub")


def read(path: Path) -> bytes:
    """A file's content.

    Raises:
        InputError: It can't be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from None


def write_once(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Writes a new file, whole or not at all, and never in the place of another.

    Raises:
        InputError: There is one already, or it can't be written.
    """
    try:
        files.create(path, data, mode=mode)
    except FileExistsError:
        raise InputError(f"{path} is there already, and is never overwritten") from None
    except OSError as error:
        raise InputError(f"{path} can't be written ({error.strerror})") from None
