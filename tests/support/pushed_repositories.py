"""A signed repository whose policies a push service announces."""

from __future__ import annotations

import hashlib

from tests.support.tuf_repositories import Repository


class PushedRepository(Repository):
    """A repository to which policies are published in one call."""

    def offer(
        self,
        epoch: int,
        content: bytes = b"{}",
        share: float | None = None,
        former: tuple[int, bytes] | None = None,
    ) -> bytes:
        """Publishes a document; returns its digest.

        Args:
            epoch: Its epoch.
            content: Its bytes.
            share: For which part of the fleet it is; None: for all, and nothing is said of rings.
            former: Epoch and bytes of the policy for the others.
        """
        self.targets.targets.clear()
        self.add(content, path="policy.yaml", custom={"epoch": epoch})
        if former is not None:
            self.add(former[1], path="former.yaml", custom={"epoch": former[0]})
        if share is not None:
            self.ring(epoch, share)
        self.publish()
        return hashlib.sha256(content).digest()
