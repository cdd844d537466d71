"""Roll-outs of policies: what polls cost a device, how fast a push reaches a fleet, and what swaps cost RPCs."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import rollout_poll, rollout_push, rollout_swap
from benchmarks.table import Row


def rows() -> Iterator[Row]:
    """All of them."""
    yield from rollout_poll.rows()
    yield from rollout_push.rows()
    yield from rollout_swap.rows()
