"""Downloads a signed set with python-tuf's Updater, which checks each file before it asks for the next one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
from tuf.api.exceptions import DownloadHTTPError, LengthOrHashMismatchError
from tuf.api.metadata import Metadata, Root, TargetFile
from tuf.ngclient import Updater, UpdaterConfig

from dpmesh.rollout import tuf_offer
from dpmesh.rollout.layout import RING_FILE, RINGS
from dpmesh.rollout.tuf_fetch import FolderFetcher, HttpsFetcher
from dpmesh.rollout.tuf_trust import SignedSet, Trusted, verify

# The most bytes of each file. At most 256 roots may follow that of the image.
_LIMITS = UpdaterConfig(
    max_root_rotations=256,
    root_max_length=256_000,
    timestamp_max_length=16_000,
    snapshot_max_length=256_000,
    targets_max_length=256_000,
)
_MISSING = (403, 404)


class Download:
    """A repository, and the root of trust with which its files are checked.

    Args:
        fetcher: Reads its files.
        base: The address of the repository, as the fetcher takes it.
        image: root.json of the image.
    """

    def __init__(self, fetcher: FolderFetcher | HttpsFetcher, base: str, image: bytes) -> None:
        self._fetcher = fetcher
        self._base = base.rstrip("/")
        self._image = image
        self._root = Metadata[Root].from_bytes(image).signed

    def timestamp(self) -> bytes:
        """The repository's timestamp, unchecked.

        Raises:
            DownloadError: There is none, or it can't be had.
        """
        return self._fetcher.download_bytes(
            f"{self._base}/metadata/timestamp.json", _LIMITS.timestamp_max_length
        )

    def has_root(self, version: int) -> bool:
        """Whether the repository has a root of some version. It is not checked.

        Raises:
            DownloadError: There is no answer.
        """
        url = f"{self._base}/metadata/{version}.root.json"
        try:
            self._fetcher.download_bytes(url, _LIMITS.root_max_length)
        except DownloadHTTPError as error:
            if error.status_code not in _MISSING:
                raise
            return False
        return True

    def newest(
        self, kept: SignedSet | None, scratch: Path, check: Callable[[Trusted, bytes], None]
    ) -> tuple[SignedSet, Trusted]:
        """Downloads what the repository has now.

        Args:
            kept: The newest set that is known. No file older than this set's is taken.
            scratch: A folder for the Updater. It is emptied before and removed in the end.
            check: Gets the metadata and the timestamp's bytes before the documents are downloaded, and may raise.

        Raises:
            RepositoryError: A file is not signed as it has to be, is older than one before, or is too old.
            DownloadError: A file can't be had, or is too large.
            OSError: The folder can't be written.
            UntrustedError: A file can't be trusted for a reason that the Updater does not check.
            UnfitError: There is no policy, or it can't be one by its name or length.
        """
        with _filled(scratch, kept):
            updater = Updater(
                str(scratch),
                f"{self._base}/metadata/",
                str(scratch / "documents"),
                f"{self._base}/targets/",
                self._fetcher,
                _LIMITS,
                bootstrap=self._image,
            )
            updater.refresh()
            updater.get_targetinfo(RING_FILE)  # It loads the role that lists this target.
            signed = self._found(scratch)
            trusted = verify(signed, self._root)
            check(trusted, signed.timestamp)
            documents = {}
            for target in tuf_offer.wanted(trusted):
                content = kept.documents.get(target.path) if kept else None
                if content is None or not _is(target, content):
                    content = Path(updater.download_target(target)).read_bytes()
                documents[target.path] = content
        return msgspec.structs.replace(signed, documents=documents), trusted

    def _found(self, scratch: Path) -> SignedSet:
        """What the Updater has accepted."""
        roots: list[bytes] = []
        while (path := _root(scratch, self._root.version + len(roots) + 1)).exists():
            roots.append(path.read_bytes())
        rings = scratch / f"{RINGS}.json"
        return SignedSet(
            roots=tuple(roots),
            timestamp=(scratch / "timestamp.json").read_bytes(),
            snapshot=(scratch / "snapshot.json").read_bytes(),
            targets=(scratch / "targets.json").read_bytes(),
            rings=rings.read_bytes() if rings.exists() else None,
        )


@contextmanager
def _filled(scratch: Path, kept: SignedSet | None) -> Iterator[None]:
    """A folder as an Updater has left it, with a set in it; removed in the end."""
    shutil.rmtree(scratch, ignore_errors=True)  # A process that was killed has left it.
    try:
        (scratch / "root_history").mkdir(parents=True, mode=0o700)
        if kept is not None:
            for data in kept.roots:
                _root(scratch, Metadata[Root].from_bytes(data).signed.version).write_bytes(data)
            for name in ("timestamp", "snapshot", "targets", RINGS):
                content = getattr(kept, name)
                if content is not None:
                    (scratch / f"{name}.json").write_bytes(content)
        yield
    finally:
        with suppress(OSError):
            shutil.rmtree(scratch)


def _root(scratch: Path, version: int) -> Path:
    return scratch / "root_history" / f"{version}.root.json"


def _is(target: TargetFile, content: bytes) -> bool:
    try:
        target.verify_length_and_hashes(content)
    except LengthOrHashMismatchError:
        return False
    return True
