"""TokenKeys: the issuer's keys for anonymous tokens, one for each epoch, in memory or in a file."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from dpmesh import files
from dpmesh.errors import ConfigError, IdentityError
from dpmesh.identity.tokens.blind_rsa import blind_sign
from dpmesh.identity.tokens.format import EXPONENT, KEY_BITS, PublishedKey, encode_key

EPOCH = 86_400.0
"""Seconds for which a key signs tokens."""
OVERLAP = 3_600.0
"""Seconds for which its tokens are valid beyond that."""


@dataclass(frozen=True, slots=True)
class _Key:
    """A private key with its published part, which says when its epoch begins and its tokens expire."""

    private: rsa.RSAPrivateKey = field(repr=False)
    published: PublishedKey


class TokenKeys:
    """Makes a key for each epoch, one epoch ahead, and forgets it when all its tokens have expired.

    All devices of an epoch use one key: a key for one device would identify it (RFC 9576 calls this partitioning). So
    an epoch must be long enough for many devices. Its length is public, and epochs begin at multiples of it since 1970.

    Any thread may call the methods. Keys are in memory, or in a file that only its owner may read and that processes on
    one machine may share. Signing takes some 7 ms of one core.

    Args:
        path: The file, which is made if it does not exist; None for memory.
        epoch: Seconds for which a key signs tokens; whole.
        overlap: Seconds for which its tokens are valid beyond that; whole, and at most an epoch.
        clock: Seconds since 1970.

    Raises:
        ConfigError: `epoch` or `overlap` is out of range.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        epoch: float = EPOCH,
        overlap: float = OVERLAP,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not 1 <= epoch < math.inf or epoch != int(epoch):
            raise ConfigError(f"an epoch of token keys must be a whole number of seconds, not {epoch}")
        if not 0 <= overlap <= epoch or overlap != int(overlap):
            raise ConfigError(
                f"the overlap of token keys must be whole seconds, at most an epoch, not {overlap}"
            )
        self.epoch, self.overlap = int(epoch), int(overlap)
        self._path = None if path is None else Path(path).absolute()
        self._clock = clock
        self._lock = threading.Lock()
        self._keys: tuple[_Key, ...] = ()

    def published(self, now: float) -> list[PublishedKey]:
        """Every key whose tokens are valid now or in the next epoch, oldest first.

        Raises:
            IdentityError: ISSUER_UNAVAILABLE: the file can't be read or written.
        """
        return [key.published for key in self._in_force(now)]

    def current(self, now: float) -> PublishedKey:
        """The key of the current epoch.

        Raises:
            IdentityError: As in `published`.
        """
        start = self._epoch_of(now)
        return next(key.published for key in self._in_force(now) if key.published.not_before == start)

    def sign(self, truncated_key_id: int, blinded_message: bytes) -> bytes:
        """Signs under a key that is published now.

        Args:
            truncated_key_id: The last byte of the key's id.
            blinded_message: 256 bytes.

        Returns:
            256 bytes.

        Raises:
            IdentityError: EXPIRED: no such key. Or as in `published`, or in `blind_sign`.
        """
        for key in self._in_force(self._clock()):
            if key.published.truncated_key_id == truncated_key_id:
                return blind_sign(key.private, blinded_message)
        raise IdentityError("EXPIRED", "no token key of this epoch or the next has this id")

    def _epoch_of(self, now: float) -> int:
        if not 0 <= now < math.inf:
            raise IdentityError("ISSUER_UNAVAILABLE", "the issuer's clock shows no time")
        return int(now // self.epoch) * self.epoch

    def _in_force(self, now: float) -> tuple[_Key, ...]:
        start = self._epoch_of(now)
        with self._lock:
            if not self._complete(start, now):
                self._keys = self._renew(start, now) if self._path is None else self._renew_file(start, now)
            return self._keys

    def _complete(self, start: int, now: float) -> bool:
        """Whether there are keys of this epoch and the next, and no expired one."""
        starts = {key.published.not_before for key in self._keys}
        return {start, start + self.epoch} <= starts and self._keys[0].published.not_after > now

    def _renew(self, start: int, now: float) -> tuple[_Key, ...]:
        """Drops expired keys, and makes missing ones."""
        keys = [key for key in self._keys if key.published.not_after > now]
        for begin in (start, start + self.epoch):
            if all(key.published.not_before != begin for key in keys):
                keys.append(self._make(begin, {key.published.truncated_key_id for key in keys}))
        return tuple(sorted(keys, key=lambda key: key.published.not_before))

    def _make(self, begin: int, taken: set[int]) -> _Key:
        """Makes a key whose truncated id no other key in force has."""
        while True:
            private = rsa.generate_private_key(EXPONENT, KEY_BITS)
            key = _with_times(private, begin, begin + self.epoch + self.overlap)
            if key.published.truncated_key_id not in taken:
                return key

    # The file is JSON. Each key has its own times, so that another overlap applies to future keys only.

    def _renew_file(self, start: int, now: float) -> tuple[_Key, ...]:
        assert self._path is not None
        try:
            with files.locked_folder(self._path.parent):
                self._keys = self._read(self._path)
                if not self._complete(start, now):
                    self._keys = self._renew(start, now)
                    content = {"epoch": self.epoch, "keys": [_entry(key) for key in self._keys]}
                    files.write(self._path, json.dumps(content).encode())
        except OSError as error:
            text = f"{self._path} can't be used as a file of token keys: {error.strerror}"
            raise IdentityError("ISSUER_UNAVAILABLE", text) from error
        return self._keys

    def _read(self, path: Path) -> tuple[_Key, ...]:
        try:
            content = json.loads(files.read_private(path))
            keys = tuple(_load(entry) for entry in content["keys"])
            epoch = content["epoch"]
        except FileNotFoundError:
            return ()
        except files.NotPrivateError:
            text = f"{path} must be a plain file that only its owner may read: chmod 600"
        except (ValueError, TypeError, KeyError):
            text = f"{path} is not a file of token keys: restore it, or remove it to begin with new keys"
        else:
            if epoch == self.epoch:
                return keys
            text = f"{path} has epochs of another length: restore the old one, or remove the file"
        # Outside of the handlers: the parser's own text could quote a key.
        raise IdentityError("ISSUER_UNAVAILABLE", text)


def _with_times(private: rsa.RSAPrivateKey, begin: int, end: int) -> _Key:
    return _Key(private, PublishedKey(encode_key(private.public_key()), begin, end))


def _load(entry: dict[str, Any]) -> _Key:
    private = serialization.load_pem_private_key(entry["key"].encode(), None)
    if not isinstance(private, rsa.RSAPrivateKey) or private.key_size != KEY_BITS:
        raise ValueError("not a token key")
    return _with_times(private, int(entry["not_before"]), int(entry["not_after"]))


def _entry(key: _Key) -> dict[str, Any]:
    pem = key.private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    times = {"not_before": key.published.not_before, "not_after": key.published.not_after}
    return {**times, "key": pem.decode()}
