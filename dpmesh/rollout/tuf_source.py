"""TufSource: policies of a repository with the signatures of The Update Framework (TUF).

Recovery. If the key of the role "timestamp" was stolen, the thief may have signed large versions and times. A new root
takes the key away, and what it signed doesn't count then. If a key of the role "targets" was stolen, the thief may have
signed a large epoch, and epochs never go back. So no epoch may be far above the one before: the officers can go on
above the thief's, by a new root and a new epoch.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec
from tuf.api import exceptions as tuf
from tuf.api.metadata import Timestamp

from dpmesh import files, forks
from dpmesh.clocks import since_boot
from dpmesh.config.redaction import quoted
from dpmesh.errors import ConfigError, DpmeshError, PolicyUnavailableError
from dpmesh.rollout import bounded_thread, rings, tuf_offer, tuf_trust
from dpmesh.rollout.last_good import LastGood
from dpmesh.rollout.layout import FORMER, POLICY
from dpmesh.rollout.source import Offer, State
from dpmesh.rollout.trusted_time import TrustedTime
from dpmesh.rollout.tuf_cache import Cache, Kept
from dpmesh.rollout.tuf_download import Download
from dpmesh.rollout.tuf_fetch import fetcher
from dpmesh.rollout.tuf_offer import UnfitError
from dpmesh.rollout.tuf_trust import SignedSet, Trusted, UntrustedError, is_signed

log = logging.getLogger("dpmesh")

for _name in ("tuf", "securesystemslib"):  # Both tell of each key at INFO.
    logging.getLogger(_name).setLevel(logging.WARNING)

# How long a refresh may take, and how much longer its thread is waited for.
_SECONDS = 60.0
_GRACE = 5.0
# The time is written down when it has gone on by this much, to spare the disk.
_HOUR = 3600.0


class _Known(NamedTuple):
    """What is kept, and what its set says."""

    kept: Kept
    trusted: Trusted


class _Refusal(NamedTuple):
    """What was refused: the timestamp that stands for it, what its set says, why, and how long it is in time."""

    stamp: bytes
    trusted: Trusted
    text: str
    time: TrustedTime


class _RefusedError(ConfigError):
    """The repository can be trusted and is in time, but what its officers signed can't be taken."""


class TufSource:
    """Asks a repository for the newest policy that its officers signed for this device.

    Several processes may share one cache.

    Attributes:
        name: "policy repository" and its URL.
        signed: True.

    Args:
        url: file:///folder or https://host/path.
        root: root.json of the image: the root of trust.
        cache: A folder of this device; made where there is none.
        floor: The least epoch of an offer: that of the image's policy.
        clock: Seconds since 1970.
        seconds: How long a refresh may take.
        since_boot: Seconds that never go back.

    Raises:
        ConfigError: The URL or the root is wrong.
    """

    signed = True

    def __init__(
        self,
        url: str,
        *,
        root: bytes,
        cache: Path,
        floor: int = 0,
        clock: Callable[[], float] = time.time,
        seconds: float = _SECONDS,
        since_boot: Callable[[], float] = since_boot,
    ) -> None:
        self.name = f"policy repository {url}"
        try:
            reader, base = fetcher(url)
        except ValueError as error:
            # Quoted without the user and the password that it may have.
            raise ConfigError(f"policy.source: {quoted(f'tuf+{url}')}: {error}") from None
        try:
            self._image = tuf_trust.image_root(root)
        except UntrustedError as error:
            raise ConfigError(f"policy.root: {error}") from None
        self._fetcher, self._download = reader, Download(reader, base, root)
        self._folder, self._cache = cache, Cache(cache)
        self._taken = LastGood(cache / "taken")
        self._floor, self._seconds = floor, seconds
        self._clock, self._since_boot = clock, since_boot
        self._time = TrustedTime(clock, since_boot)
        self._running = threading.Lock()
        self._state = State.STALE
        self._offered: tuple[object, ...] | None = None
        # Whether that has to be offered again, because something else came in between.
        self._repeats = False
        self._kept_content = b""
        self._offer: Offer | None = None
        self._refused: _Refusal | None = None
        self._known: _Known | None = None
        self._written = 0.0
        found = self._newest_known()
        if found is not None:
            self._take(found, None)
            self._written = found.kept.latest
        forks.register(self)

    def after_fork_in_child(self) -> None:
        """Forgets a refresh of the parent, whose thread the child does not have."""
        self._running = threading.Lock()

    @property
    def state(self) -> State:
        """FRESH or STALE, as of the last fetch."""
        return self._state

    async def fetch(self) -> Offer | None:
        """Asks for a policy.

        If there is no answer, and this object has not offered anything yet, it offers what the cache has.

        Returns:
            The policy; None if it has not changed since the last offer, or if this device has to wait for it because
            it is not in the ring.

        Raises:
            ConfigError: There is an answer that can't be taken. Or what was offered, and not kept, is offered to this
                device no more, because its ring has shrunk.
            PolicyUnavailableError: There is no answer, or it is too old.
        """
        try:
            state, offer = await bounded_thread.run(
                self._refresh, self._seconds + _GRACE, "dpmesh policy repository"
            )
        except Exception as error:
            self._state = State.FRESH if isinstance(error, _RefusedError) else State.STALE
            self._repeats = self._repeats or isinstance(error, ConfigError)
            if isinstance(error, TimeoutError):
                raise PolicyUnavailableError(f"{self.name}: no answer within {self._seconds:g} s") from None
            raise
        self._state = state
        if offer is None and self._offered is not None and self._offered[0] != self._kept_content:
            self._repeats = True
            raise ConfigError(f"{self.name}: what was offered is for this device no more")
        said = _said(offer)
        if offer is None or (said == self._offered and not self._repeats):
            return None
        self._offered, self._repeats = said, False
        return offer

    def first(self) -> list[Offer]:
        """The policy that was taken last; its signatures are checked again, however old it is.

        Raises:
            PolicyUnavailableError: This device has taken none yet, or what it has taken can't be trusted any more.
            ConfigError: What it has taken can't be read.
        """
        kept = self._taken.load()
        if kept is None:
            raise PolicyUnavailableError(f"{self.name}: this device has taken no policy of it yet")
        return [replace(self._restored(kept), taken=True)]

    def has_taken(self) -> bool:
        """Whether this device has ever taken a policy of it, even one that can't be believed any more."""
        return self._taken.epoch() is not None

    def keep(self, offer: Offer) -> None:
        """Makes an offer durable, with its signatures.

        Raises:
            ConfigError: Another process has taken a newer one.
            DpmeshError: It can't be stored now.
        """
        self._taken.store(offer.document.epoch, offer.kept)
        self._kept_content = offer.content

    def _restored(self, kept: bytes) -> Offer:
        """An offer of before, from its `kept` alone: without a network, and however old it is.

        Raises:
            PolicyUnavailableError: It can't be trusted, or its epoch is below the floor.
        """
        try:
            signed = msgspec.json.decode(kept, type=SignedSet)
            trusted = tuf_trust.verify(signed, self._image)
            offer = tuf_offer.read(trusted, signed, POLICY) or tuf_offer.read(trusted, signed, FORMER)
        except (msgspec.MsgspecError, UntrustedError, UnfitError) as error:
            text = f"{self.name}: what was kept can't be trusted: {_text(error)}"
            raise PolicyUnavailableError(text) from None
        if offer is None:
            raise PolicyUnavailableError(f"{self.name}: what was kept has no policy")
        if offer.document.epoch < self._floor:
            raise PolicyUnavailableError(f"{self.name}: what was kept is older than the policy of the image")
        return offer

    def _newest_known(self) -> _Known | None:
        """The newest of what the cache and this object have: another process may have been faster."""
        found = [self._known] if self._known else []
        kept = self._cache.read()
        if kept is not None and (self._known is None or kept != self._known.kept):
            try:
                found.append(_Known(kept, tuf_trust.verify(kept.signed, self._image)))
            except UntrustedError as error:
                log.error(  # noqa: TRY400
                    "%s: the cache can't be trusted, and counts as empty: %s", self.name, error
                )
        return max(found, key=lambda each: each.trusted.versions, default=None)

    def _take(self, known: _Known, offer: Offer | None) -> None:
        self._known, self._offer = known, offer
        self._time.follow(known.kept.signed.timestamp, known.trusted.expires, known.kept.latest)

    def _refresh(self) -> tuple[State, Offer | None]:
        """What the repository says now; runs in a thread.

        Raises:
            DpmeshError: As `fetch` says.
        """
        if not self._running.acquire(blocking=False):
            raise PolicyUnavailableError(f"{self.name}: the refresh before has not ended yet")
        try:
            self._fetcher.begin(self._seconds)
            return State.FRESH, self._ask()
        except DpmeshError as error:
            offer = self._offer_at_start()
            if offer is None:
                raise
            log.error("%s; the newest policy in the cache is offered", error)  # noqa: TRY400
            return State.STALE, offer  # There may be a newer policy, even one that was refused.
        finally:
            self._note_time()
            self._running.release()

    def _ask(self) -> Offer | None:
        try:
            stamp = self._download.timestamp()
            known = self._unchanged(stamp)
            if known is None:
                # Not the cache's own lock: a repository that answers slowly must not keep others from the cache.
                with files.locked_folder(self._folder / "download"):
                    self._update(stamp)
            elif self._offer is None:
                self._offer = self._choice(known)
        except UnfitError as error:
            raise _RefusedError(f"{self.name}: {error}") from None
        except tuf.ExpiredMetadataError:
            raise PolicyUnavailableError(f"{self.name}: its metadata is too old") from None
        except (tuf.RepositoryError, UntrustedError, tuf.DownloadLengthMismatchError, ValueError) as error:
            raise ConfigError(f"{self.name}: can't be trusted: {_text(error)}") from None
        except tuf.DownloadError as error:
            raise PolicyUnavailableError(f"{self.name}: {error}") from None
        except (OSError, files.NotPrivateError) as error:
            text = getattr(error, "strerror", None) or type(error).__name__
            raise PolicyUnavailableError(f"{self.name}: its cache {self._folder}: {text}") from None
        return self._offer

    def _unchanged(self, stamp: bytes) -> _Known | None:
        """What is known, if a timestamp is that of it, and no root follows.

        Raises:
            UnfitError: Nothing has changed since what the timestamp stands for was refused.
            PolicyUnavailableError: So it is, but the timestamp is too old by now.
        """
        refused = self._refused
        if refused is not None and refused.stamp == stamp:
            if self._download.has_root(refused.trusted.root.version + 1):
                return None
            # Somebody may show this set for ever, because there is a newer one.
            self._check_in_time(refused.trusted, self._time.latest, stamp, refused.time)
            raise UnfitError(refused.text)
        known = self._known
        if known is None or known.kept.signed.timestamp != stamp:
            return None
        if self._download.has_root(known.trusted.root.version + 1):
            return None
        self._check_in_time(known.trusted, self._time.latest, stamp)
        return known

    def _update(self, stamp: bytes) -> None:
        """Takes over what the repository has now. No other process downloads meanwhile."""
        known = self._newest_known()
        kept = known.kept if known else None
        checked: list[Trusted] = []

        def check(trusted: Trusted, timestamp: bytes) -> None:
            self._check_in_time(trusted, self._latest(kept, trusted), timestamp)
            checked.append(trusted)

        try:
            signed, trusted = self._download.newest(
                kept.signed if kept else None, self._folder / "download" / "scratch", check
            )
            found = self._judged(kept, signed, trusted)
            offer = self._choice(_Known(found, trusted))
        except UnfitError as error:
            if checked:
                self._refused = self._refusal(stamp, checked[0], str(error), self._latest(kept, checked[0]))
            raise
        if offer is not None:
            found = msgspec.structs.replace(
                found, epoch=offer.document.epoch, digest=hashlib.sha256(offer.content).hexdigest()
            )
        if found != kept:
            with files.locked_folder(self._folder):
                self._cache.write(found)
            self._written = found.latest
        self._take(_Known(found, trusted), offer)

    def _refusal(self, stamp: bytes, trusted: Trusted, text: str, latest: float) -> _Refusal:
        own = TrustedTime(self._clock, self._since_boot)
        own.follow(stamp, trusted.expires, latest)
        return _Refusal(stamp, trusted, text, own)

    def _judged(self, kept: Kept | None, signed: SignedSet, trusted: Trusted) -> Kept:
        """A new set, with what is known from before."""
        latest = self._time.seen(trusted.timestamp.expires.timestamp(), self._latest(kept, trusted))
        return Kept(signed, latest, kept.epoch if kept else 0, kept.digest if kept else "")

    def _latest(self, kept: Kept | None, trusted: Trusted) -> float:
        """The latest time seen, as far as the keys of a root vouch for the timestamps under which it was seen."""
        seen = [(kept, kept.latest)] if kept else []
        seen += [(self._known.kept, self._time.latest)] if self._known else []
        vouched = [time for each, time in seen if is_signed(trusted.root, Timestamp, each.signed.timestamp)]
        return max(vouched, default=0.0)

    def _choice(self, known: _Known) -> Offer | None:
        """What this device is offered of a set; errors as of `tuf_offer.chosen`."""
        return tuf_offer.chosen(
            known.trusted,
            known.kept,
            floor=self._floor,
            taken=self._taken.epoch(),
            secret=partial(rings.device_secret, self._folder),
        )

    def _check_in_time(
        self, trusted: Trusted, latest: float, timestamp: bytes, known: TrustedTime | None = None
    ) -> None:
        """Checks a set against the time.

        Args:
            trusted: What it says.
            latest: The latest time that counts as seen.
            timestamp: Its timestamp.
            known: Knows when the set was first seen; None: that of the set in use.

        Raises:
            PolicyUnavailableError: It is too old.
        """
        if (known or self._time).is_over(timestamp, trusted.expires, latest):
            end = datetime.fromtimestamp(trusted.expires, UTC)
            raise PolicyUnavailableError(
                f"{self.name}: its metadata is too old: it ended {end:%Y-%m-%d %H:%M} UTC"
            )

    def _offer_at_start(self) -> Offer | None:
        """What the cache has, if nothing was offered yet."""
        if self._offered is None and self._known is not None:
            with suppress(UnfitError, OSError, files.NotPrivateError):
                self._offer = self._offer or self._choice(self._known)
                return self._offer
        return None

    def _note_time(self) -> None:
        """Lets the clock's time count as seen, and writes it down now and then."""
        if self._known is None:
            return
        kept, end = self._known.kept, self._known.trusted.timestamp.expires.timestamp()
        latest = self._time.latest = self._time.seen(end, self._time.latest)
        if latest < self._written + _HOUR and not latest >= end > self._written:
            return
        with suppress(OSError), files.locked_folder(self._folder):
            found = self._cache.read() or kept
            if found.signed == kept.signed:  # Otherwise another process knows a newer set, and its time.
                self._cache.write(msgspec.structs.replace(found, latest=max(found.latest, latest)))
                self._written = latest


def _said(offer: Offer | None) -> tuple[object, ...] | None:
    return None if offer is None else (offer.content, offer.signers, offer.not_before, offer.reason)


def _text(error: Exception) -> str:
    """What people are told of an error: python-tuf's texts may quote the repository's files."""
    return str(error) if isinstance(error, (UntrustedError, UnfitError)) else type(error).__name__
