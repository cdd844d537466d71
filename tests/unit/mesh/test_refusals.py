"""Refusals: which category and reason each error has, and that no text of others' reaches a peer."""

import pytest

from dpmesh import errors
from dpmesh.mesh import refusals
from dpmesh.mesh.refusals import Category

SECRET = "/var/lib/secret.db"


@pytest.mark.parametrize(
    ("error", "category", "reason", "details"),
    [
        (
            errors.BudgetExhaustedError("day", 60.0),
            Category.EXHAUSTED,
            "PRIVACY_BUDGET_EXHAUSTED",
            {"budget": "day"},
        ),
        (errors.NotOpenError(), Category.UNAVAILABLE, "LEDGER_UNAVAILABLE", {}),
        (errors.LedgerError("gone"), Category.UNAVAILABLE, "LEDGER_UNAVAILABLE", {}),
        (errors.IdentityError("TOKEN_SPENT", "spent"), Category.UNAUTHENTICATED, "TOKEN_SPENT", {}),
        (errors.IdentityError("EXPIRED", "old"), Category.UNAVAILABLE, "EXPIRED", {}),
        (errors.ProtectionError("INTERNAL", "a.B", "x"), Category.INTERNAL, "INTERNAL", {"field": "a.B"}),
        (
            errors.ProtectionError("WRONG_TYPE", "a.B", "x"),
            Category.PRECONDITION,
            "WRONG_TYPE",
            {"field": "a.B"},
        ),
        (
            errors.AnnotationError("bounds", "a.B.c", "x"),
            Category.PRECONDITION,
            "BAD_ANNOTATION",
            {"field": "a.B.c", "rule": "bounds"},
        ),
        (errors.ConfigError("x"), Category.INTERNAL, "INTERNAL", {}),
    ],
)
def test_each_error_has_a_category_and_a_reason(error, category, reason, details):
    refusal = refusals.of(error)
    assert (refusal.category, refusal.reason, refusal.details) == (category, reason, details)
    assert refusal.retryable == (category is Category.UNAVAILABLE)


def test_a_budget_says_when_it_renews():
    assert refusals.of(errors.BudgetExhaustedError("day", 60.0)).retry_after == 60.0
    assert refusals.of(errors.BudgetExhaustedError("ever", None)).retry_after is None


@pytest.mark.parametrize(
    "error",
    [errors.LedgerError(SECRET), errors.IdentityError("UNTRUSTED", SECRET), errors.ConfigError(SECRET)],
)
def test_texts_that_may_name_a_file_or_be_the_applications_stay_here(error):
    assert SECRET not in refusals.of(error).text


def test_only_dpmeshs_own_classes_are_refusals():
    class OfTheApplication(errors.DpmeshError):
        pass

    assert refusals.is_own(errors.LedgerError("gone"))
    assert not refusals.is_own(OfTheApplication(SECRET))
    assert not refusals.is_own(ValueError(SECRET))
