"""The order of two policies' budgets: whether the step from one to the other weakens a promise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dpmesh.ledger import Budget
from dpmesh.rollout.difference import Difference, Judged, Order


def differences(old: Sequence[Budget], new: Sequence[Budget]) -> Iterator[Difference]:
    """All differences between the budgets of two policies, quotas included."""
    before, after = {each.name: each for each in old}, {each.name: each for each in new}
    for name in sorted({*before, *after}):
        kind = (before.get(name) or after[name]).kind
        if name not in after:
            yield Difference(f"{kind} {name}", Order.LOOSER, "is dropped")
        elif name not in before:
            if kind == "quota" or _pays_for_all(old, after[name].owner):
                yield Difference(f"{kind} {name}", Order.TIGHTER, "is new")
            else:
                text = "is new, and may pay for messages that were refused, because no budget paid for them"
                yield Difference(f"{kind} {name}", Order.LOOSER, text)
        else:
            for order, text in _budget(before[name], after[name], _pays_for_all(old, before[name].owner)):
                yield Difference(f"{kind} {name}", order, text)


# From the one that lets least leave.
_EXHAUSTED = ("reject", "suppress", "replay")


def _pays_for_all(budgets: Sequence[Budget], owner: str) -> bool:
    """Whether some budget pays for all messages of an owner, so that another one admits none that was refused."""
    return any(not each.is_quota and each.owner == owner and each.match.everything for each in budgets)


def _budget(old: Budget, new: Budget, all_paid: bool) -> Judged:
    """Judges a budget or quota.

    Args:
        old: What holds.
        new: What shall replace it.
        all_paid: Some budget paid for all messages of its owner.
    """
    for key in ("key", "accounting", "under"):
        if getattr(old, key) != getattr(new, key):
            yield Order.LOOSER, f"{key} {getattr(old, key)} -> {getattr(new, key)}: it can't be judged"
    for key in ("epsilon", "delta", "threshold_delta"):
        caps = getattr(old, key), getattr(new, key)
        if caps[0] != caps[1]:
            yield Order.TIGHTER if caps[1] < caps[0] else Order.LOOSER, f"{key} {caps[0]:g} -> {caps[1]:g}"
    if old.window != new.window:
        words = ["lifetime" if each is None else f"{each:g} s" for each in (old.window, new.window)]
        longer = new.window is None or (old.window is not None and new.window > old.window)
        yield Order.TIGHTER if longer else Order.LOOSER, f"window {words[0]} -> {words[1]}"
    if old.on_exhausted != new.on_exhausted:
        stricter = _EXHAUSTED.index(new.on_exhausted) < _EXHAUSTED.index(old.on_exhausted)
        text = f"on_exhausted {old.on_exhausted} -> {new.on_exhausted}"
        yield Order.TIGHTER if stricter else Order.LOOSER, text
    for key, lists in (
        *(
            (key, (getattr(old.match, key), getattr(new.match, key)))
            for key in ("methods", "messages", "directions", "labels")
        ),
        ("consumers", (old.consumers, new.consumers)),
    ):
        if lists[0] != lists[1]:
            wider = not lists[1] or (set(lists[0]) < set(lists[1]) and bool(lists[0]))
            tighter = wider and (all_paid or old.is_quota)
            yield Order.TIGHTER if tighter else Order.LOOSER, f"{key} {_list(lists[0])} -> {_list(lists[1])}"


def _list(globs: Sequence[str]) -> str:
    return ", ".join(globs) or "all"
