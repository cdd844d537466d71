"""Admission: from when on an offered policy may be put in force, and what the ledger records of a looser one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dpmesh.accounting import MAX_SECONDS, window_end, window_start
from dpmesh.errors import ConfigError, LedgerError, PolicyUnavailableError
from dpmesh.rollout.difference import Order
from dpmesh.rollout.policy_order import Comparison, Elements, Terms, compare
from dpmesh.rollout.source import Offer, State
from dpmesh.v1 import policy_pb2

LOOSER_SIGNERS = 2
"""How many distinct keys have to sign a looser policy."""

REASON_LENGTH = 500
"""How many characters the reason of a looser policy may have."""


class Verdict(NamedTuple):
    """What becomes of an offered policy.

    Attributes:
        at: From when on it may be put in force, in seconds since 1970.
        note: What the ledger has to record before; "" if nothing.
    """

    at: float
    note: str


def judge(
    old: Terms, new: Terms, offer: Offer, *, state: State, signed: bool, first: bool, since: float
) -> Verdict:
    """Compares an offered policy to the one in force, on all types that this process has loaded.

    This takes as long as it takes to compile both policies for all of these types, so call it in a thread.

    Args:
        old: What is in force.
        new: What the offer would put in force.
        offer: The policy, as the source has it.
        state: The source's state.
        signed: The source has signatures.
        first: This device has not taken any policy from the source yet, so that there is nothing to loosen.
        since: When this device first had the offer, in seconds since 1970 by the ledger's clock. A looser policy begins
            with the first window that begins after that.

    Raises:
        ConfigError, PolicyUnavailableError, LedgerError: As of `admitted_at`.
    """
    comparison = Comparison(()) if first else compare(old, new, Elements.loaded(old.policy, new.policy))
    windows = [budget.window for budget in old.budgets if budget.window is not None]
    at = admitted_at(offer, comparison, state=state, signed=signed, now=since, windows=windows)
    looser = comparison.order is Order.LOOSER
    return Verdict(at, _note(old.policy.document, offer) if looser else "")


def admitted_at(
    offer: Offer, comparison: Comparison, *, state: State, signed: bool, now: float, windows: Sequence[float]
) -> float:
    """From when on an offered policy may be put in force.

    A policy that is not looser than the one in force may be put in force at its `not_before`. So may any policy of a
    plain file. A looser one from a signed source needs two signatures, a reason, and a source that is known to show the
    newest policy. It begins with the first window that begins after now, and not before `not_before`.

    Args:
        offer: The policy.
        comparison: The policy in force, compared to this one. A device that has not taken any policy from the source
            yet has nothing that could be loosened: `Comparison(())`.
        state: The source's state.
        signed: The source has signatures. A plain file has none: who may write it decides alone, and could restart the
            process to be rid of a wait.
        now: Seconds since 1970, by the ledger's clock.
        windows: The lengths of the budgets in force in seconds, without lifetime budgets. The longest one counts. If
            there is none, no window renews, and a looser policy need not wait for one.

    Returns:
        Seconds since 1970. At most `now`: at once.

    Raises:
        ConfigError: It may never be put in force in place of the present one.
        PolicyUnavailableError: It is looser, and nobody knows whether there is a newer policy. This may pass.
        LedgerError: The clock shows no time.
    """
    earliest = max(offer.not_before, 0.0)
    if not 0 <= earliest <= MAX_SECONDS:
        raise ConfigError("policy: not_before: it is no time in seconds since 1970")
    if comparison.order is not Order.LOOSER or not signed:
        return earliest
    _check_officers(offer, comparison, state)
    if not windows:
        return earliest
    longest = max(windows)
    try:
        following = window_end(now, longest)
        begun = window_start(earliest, longest)
    except ValueError as error:
        raise LedgerError(f"the ledger's clock is broken: {error}") from error
    assert following is not None
    return float(max(following, begun if begun == earliest else begun + int(longest)))


def _check_officers(offer: Offer, comparison: Comparison, state: State) -> None:
    """Checks what two officers have to give to a looser policy, and that no newer policy is held back from here."""
    worst = comparison.differences[0]
    looser = f"policy: epoch {offer.document.epoch} is looser than the policy in force ({worst.element})"
    if offer.signers < LOOSER_SIGNERS:
        raise ConfigError(
            f"{looser}, and {offer.signers} of the {LOOSER_SIGNERS} officers that it needs signed it: "
            "let another officer sign it, too"
        )
    if not offer.reason.strip():
        raise ConfigError(f"{looser}, and gives no reason: publish it with one")
    if len(offer.reason) > REASON_LENGTH or not offer.reason.isprintable():
        raise ConfigError(
            f"{looser}, and its reason is not one line of at most {REASON_LENGTH} printable characters: shorten it"
        )
    if state is not State.FRESH:
        raise PolicyUnavailableError(
            f"{looser}, and its source is {state}: it waits until the source shows that there is no newer policy"
        )


def _note(old: policy_pb2.Policy, offer: Offer) -> str:
    """What the ledger records of a looser policy that replaces another one: both epochs, and the officers' reason."""
    reason = " ".join(offer.reason.split()) or "no reason given"
    return f"policy epoch {offer.document.epoch} replaces epoch {old.epoch}, looser: {reason[:REASON_LENGTH]}"
