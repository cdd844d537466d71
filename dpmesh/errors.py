"""Everything that dpmesh raises: one root, a short tree.

No message of any of these carries a field's value, a unit's id or noise: they name fields, keys and budgets.
"""

from __future__ import annotations


class DpmeshError(Exception):
    """The root of all errors that dpmesh raises."""


class ConfigError(DpmeshError):
    """A wrong key or value in the configuration; the text names both and says what is allowed."""


class PolicyUnavailableError(DpmeshError):
    """A source of policies does not answer, so nobody knows whether there is a newer policy."""


class PolicyHeldError(DpmeshError):
    """A policy that may not be put in force yet.

    Attributes:
        until: From when on it may be, in seconds since 1970.
    """

    def __init__(self, until: float, text: str) -> None:
        super().__init__(text)
        self.until = until


class RolloutStoreError(DpmeshError):
    """The store of a push service of policies can't be read or written. Nothing but its counts depends on it."""


class AnnotationError(DpmeshError):
    """A bad annotation or overlay, found before any message is released.

    Attributes:
        rule: The rule's id, as `dpmesh check` prints it.
        element: The full name of the field, oneof, message or method.
        text: What is wrong.
        fix: What to write instead.
    """

    def __init__(self, rule: str, element: str, text: str, fix: str = "") -> None:
        super().__init__(f"{element}: {text} [{rule}]" + (f" Fix: {fix}" if fix else ""))
        self.rule = rule
        self.element = element
        self.text = text
        self.fix = fix


class ProtectionError(DpmeshError):
    """A message that can't be protected, and so can't be sent.

    Attributes:
        reason: UPPER_SNAKE_CASE, one of MISSING_UNIT, MISSING_AGGREGATE, NOT_A_NUMBER, WRONG_TYPE, UNANNOTATED,
            NOT_JUDGED, SIZE, SEND_SLOT, SLOT_COVER, SLOT_QUEUE_FULL, SLOT_SENDER_CLOSED, POLICY_EXPIRED, INTERNAL.
        field: The field's full name, or the message's or method's where no field is to blame.
    """

    def __init__(self, reason: str, field: str, text: str) -> None:
        super().__init__(f"{field}: {text} [{reason}]")
        self.reason = reason
        self.field = field


class BudgetExhaustedError(DpmeshError):
    """The budget does not cover the release, which was refused and charged to nothing.

    Attributes:
        budget: The budget's name.
        retry_after: Seconds until its window renews, or None where that is no help: it never does, or the whole budget
            does not cover the release.
    """

    def __init__(self, budget: str, retry_after: float | None) -> None:
        when = "waiting is no help" if retry_after is None else f"it renews in {retry_after:.0f} s"
        super().__init__(f"privacy budget {budget!r} does not cover this release; {when}")
        self.budget = budget
        self.retry_after = retry_after


class LedgerError(DpmeshError):
    """The ledger can't answer, so nothing may leave."""


class NotOpenError(LedgerError):
    """The mesh is not open: nobody entered it, or it was left."""

    def __init__(self) -> None:
        super().__init__("the mesh is not open: use `async with dpmesh.open(...) as mesh`")


class LostChargesError(LedgerError):
    """The ledger has forgotten charges that it had acknowledged: an older copy was put in its place."""


class IdentityError(DpmeshError):
    """An identity or a token that can't be had, read or trusted, so nothing is sent under it.

    Attributes:
        reason: UPPER_SNAKE_CASE: ISSUER_UNAVAILABLE (try again later), REFUSED (the issuer says no), RATE_LIMITED,
            EXPIRED, UNTRUSTED, MALFORMED, TOKEN_MISSING, TOKEN_INVALID or TOKEN_SPENT.
    """

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(f"{text} [{reason}]")
        self.reason = reason
