"""Which part of a fleet takes the newest policy of a repository: what officers write into ring.json."""

from __future__ import annotations

import msgspec
from securesystemslib.signer import Key
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    TargetFile,
    Targets,
)

from dpmesh.errors import ConfigError
from dpmesh.rollout import tuf_keys
from dpmesh.rollout.layout import RING_FILE, RINGS
from dpmesh.rollout.rings import Ring
from dpmesh.rollout.tuf_folder import (
    PublishedFiles,
    epoch_of,
    expiry,
    is_signed,
    sign,
    version,
)
from dpmesh.rollout.tuf_roots import KeyRoots

LEAST_SHARE = 0.05
"""The smallest ring: a digest that fewer devices show makes them known."""


class RingFiles(KeyRoots):
    """A folder of signed policies, and its ring.json."""

    def _partial(self, state: PublishedFiles) -> int:
        """The epoch of the published policy if only a part of the fleet may take it; otherwise 0."""
        ring = self._share(state)
        epoch = 0 if state.targets is None else epoch_of(state.targets)
        return epoch if ring is not None and ring.epoch == epoch and ring.share < 1 else 0

    def _ring(
        self, state: PublishedFiles, targets: Targets, epoch: int, share: float | None, rings: str
    ) -> Targets | None:
        """What the role "rings" says from now on."""
        before = self._share(state)
        if share is None:
            if state.rings is None and targets.delegations is not None and before is None and not rings:
                raise ConfigError(
                    "--rings-key: the first policy needs it; without --share the whole fleet takes it"
                )
            if not rings:
                self._check_rings(state, targets)
                return state.rings
            if before is not None and before.epoch == epoch:
                return self._written_ring(state, targets, epoch, before.share, rings)
            share = 1.0
        if not LEAST_SHARE <= share <= 1:
            raise ConfigError(
                f"--share {share:g}: allowed: {LEAST_SHARE:g} to 1; a smaller part would be known by it"
            )
        if before is not None and before.epoch == epoch and share < before.share:
            raise ConfigError(
                f"--share {share:g}: {before.share:.0%} of the fleet may have taken epoch {epoch} already; "
                "`dpmesh policy halt` stops it"
            )
        return self._written_ring(state, targets, epoch, share, rings)

    def _check_rings(self, state: PublishedFiles, targets: Targets) -> None:
        """Checks that the published ring has the signature that the targets ask for."""
        if state.rings is not None:
            metadata = self._load(self._metadata(f"{state.rings.version}.{RINGS}.json"), Targets)
            if targets.delegations is None or not is_signed(metadata, targets, RINGS):
                raise ConfigError(
                    "--rings-key: the new key for rings has to sign how much of the fleet takes it"
                )

    def _share(self, state: PublishedFiles) -> Ring | None:
        """The ring that devices read."""
        target = None if state.rings is None else state.rings.targets.get(RING_FILE)
        if target is None:
            return None
        path = self._target(target)
        try:
            return Ring.parse(self._read(path))
        except ValueError as error:
            raise ConfigError(f"{path}: {error}") from None

    def _written_ring(
        self, state: PublishedFiles, targets: Targets, epoch: int, share: float, signer: str
    ) -> Targets:
        if targets.delegations is None:
            raise ConfigError(
                "--share: the repository has no key for rings: `dpmesh policy sign --rings` names one"
            )
        if not signer:
            raise ConfigError("--rings-key: the share needs it")
        content = msgspec.json.encode(Ring(epoch, share))
        rings = Targets(version=version(state.rings) + 1, expires=expiry(RINGS))
        rings.targets[RING_FILE] = TargetFile.from_data(RING_FILE, content)
        keys = list(targets.delegations.keys.values())
        self._write_target(rings, RING_FILE, content)
        self._create(f"{rings.version}.{RINGS}.json", sign(rings, [tuf_keys.signer(signer, keys, "rings")]))
        return rings


def delegations(key: Key) -> Delegations:
    """Lets a key choose which part of the fleet takes a policy, and nothing else."""
    return Delegations(
        {key.keyid: key}, {RINGS: DelegatedRole(RINGS, [key.keyid], 1, True, paths=[RING_FILE])}
    )
