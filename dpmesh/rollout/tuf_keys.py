"""The keys of officers: files that `dpmesh policy key` makes, and signers elsewhere, by their URI."""

from __future__ import annotations

import logging
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from securesystemslib.signer import CryptoSigner, Key, Signer, SSlibKey

from dpmesh import files
from dpmesh.errors import ConfigError

# Both tell of each key at INFO.
for _name in ("tuf", "securesystemslib"):
    logging.getLogger(_name).setLevel(logging.WARNING)

PUBLIC = ".pub"
"""What the name of a public key's file ends with, after that of its private key."""


def create(path: Path) -> None:
    """Makes an ed25519 key: a private file, and beside it the public key, which others may have.

    Args:
        path: The private key's file; there is none yet. PEM, PKCS #8, without a passphrase.

    Raises:
        ConfigError: A file can't be written, or is there already.
    """
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    try:
        files.create(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        files.create(path.with_name(path.name + PUBLIC), public, mode=0o644)
    except FileExistsError as error:
        raise ConfigError(f"key {error.filename2 or path}: is there already") from None
    except OSError as error:
        raise ConfigError(f"key {path}: can't be written ({error.strerror})") from None


def read_public(path: Path) -> Key:
    """A public key in PEM.

    Raises:
        ConfigError: The file can't be read, or holds no public key.
    """
    try:
        found: Key = SSlibKey.from_crypto(load_pem_public_key(path.read_bytes()))
    except OSError as error:
        raise ConfigError(f"key {path}: can't be read ({error.strerror})") from None
    except Exception:  # The libraries raise many, and their texts may quote the file.
        raise ConfigError(f"key {path}: is no public key in PEM, as `dpmesh policy key` makes") from None
    return found


def signer(name: str, keys: list[Key], role: str) -> Signer:
    """A signer whose public key is one of a role's.

    Args:
        name: A private key's file; or a URI of securesystemslib (hsm:, awskms:, gcpkms:, azurekms:, hv:, file2:), whose
            packages have to be installed.
        keys: The public keys of the role.
        role: What to call the role in errors.

    Raises:
        ConfigError: There is no such key, it can't be used, or it is none of the role's.
    """
    scheme, colon, _ = name.partition(":")
    if colon and scheme.isalnum() and not Path(name).exists():
        return _elsewhere(name, scheme, keys)
    path = Path(name)
    try:
        found = CryptoSigner(load_pem_private_key(files.read_private(path), None))
    except OSError as error:
        raise ConfigError(f"key {path}: can't be read ({error.strerror})") from None
    except files.NotPrivateError:
        if path.name.endswith(".pub"):
            raise ConfigError(f"key {path}: is a public key: its private key has to sign") from None
        raise ConfigError(f"key {path}: others may read it: chmod 600, and think of a new key") from None
    except Exception:
        raise ConfigError(f"key {path}: is no private key without a passphrase in PEM") from None
    if found.public_key not in keys:
        raise ConfigError(f"key {path}: is none of the role's keys (role: {role})")
    return found


def _elsewhere(uri: str, scheme: str, keys: list[Key]) -> Signer:
    """The signer of a URI, with the key of the role that its signature fits."""
    failed = ""
    for key in keys:
        try:
            found = Signer.from_priv_key_uri(uri, key)
            key.verify_signature(found.sign(b"dpmesh"), b"dpmesh")
        except Exception as error:
            failed = type(error).__name__
        else:
            return found
    raise ConfigError(f"key {scheme}:...: can't sign for the role ({failed or 'it has no keys'})")
