"""Refusals: what a peer may learn of an error, and whether it should try again. Transports add only their codes.

Texts and details name methods, fields, keys and budgets; never a value, and never another exception's text.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final, NamedTuple, TypeGuard

from dpmesh.errors import (
    AnnotationError,
    BudgetExhaustedError,
    DpmeshError,
    IdentityError,
    LedgerError,
    NotOpenError,
    ProtectionError,
)

DOMAIN: Final = "dpmesh"
# What a peer reads instead of the text of a handler's exception, and instead of its status details.
HANDLER_FAILED: Final = "the handler failed; dpmesh keeps its exception's text from the peer"
WITHHELD: Final = "dpmesh keeps the handler's details from the peer ([grpc] pass_status_details)"

_IDENTITY_FAILED: Final = "an identity, or what checks one, can't be had now"
_FAILED: Final = "dpmesh failed, so nothing may leave"
_LEDGER_FAILED: Final = "the ledger can't answer now, so nothing may leave or be let in"


class Category(enum.Enum):
    """What kind of refusal it is; each transport has one code for each."""

    EXHAUSTED = enum.auto()  # A budget does not cover the message.
    UNAVAILABLE = enum.auto()  # The ledger or an identity can't be had now.
    UNAUTHENTICATED = enum.auto()  # A token is missing, invalid or spent.
    PRECONDITION = enum.auto()  # The message, its annotations or its sender have to change.
    INTERNAL = enum.auto()  # dpmesh failed, or is set up wrong.


class Refusal(NamedTuple):
    """Why a message or an RPC is refused, as the peer may read it.

    Attributes:
        category: What kind of refusal it is.
        reason: UPPER_SNAKE_CASE, for programs.
        text: For people.
        details: What the refusal is about, for programs.
        retry_after: Seconds until the budget renews, if that helps.
    """

    category: Category
    reason: str
    text: str
    details: Mapping[str, str] = {}
    retry_after: float | None = None

    @property
    def retryable(self) -> bool:
        """Whether a retry policy may try again at once.

        Any other refusal would only be repeated, and each attempt runs the handler and may be charged again.
        """
        return self.category is Category.UNAVAILABLE


def of(error: DpmeshError) -> Refusal:
    """The refusal that an error means."""
    if isinstance(error, BudgetExhaustedError):
        details = {"budget": error.budget}
        return Refusal(Category.EXHAUSTED, "PRIVACY_BUDGET_EXHAUSTED", str(error), details, error.retry_after)
    if isinstance(error, LedgerError):
        # Its own text may name the ledger's file.
        text = str(error) if isinstance(error, NotOpenError) else _LEDGER_FAILED
        return Refusal(Category.UNAVAILABLE, "LEDGER_UNAVAILABLE", text)
    if isinstance(error, IdentityError):
        if error.reason.startswith("TOKEN_"):
            return Refusal(Category.UNAUTHENTICATED, error.reason, str(error))
        # The text of any other may name a file.
        return Refusal(Category.UNAVAILABLE, error.reason, _IDENTITY_FAILED)
    if isinstance(error, ProtectionError):
        category = Category.INTERNAL if error.reason == "INTERNAL" else Category.PRECONDITION
        return Refusal(category, error.reason, str(error), {"field": error.field})
    if isinstance(error, AnnotationError):
        details = {"field": error.element, "rule": error.rule}
        return Refusal(Category.PRECONDITION, "BAD_ANNOTATION", str(error), details)
    # The text of an error that is none of these may be the application's own.
    return Refusal(Category.INTERNAL, "INTERNAL", _FAILED)


def is_own(error: BaseException) -> TypeGuard[DpmeshError]:
    """Whether an exception is dpmesh's own: a class that the application derives from one may have any text."""
    return isinstance(error, DpmeshError) and type(error).__module__.partition(".")[0] == "dpmesh"
