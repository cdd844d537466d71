"""What `dpmesh plan` works out, against the formulas of privacy.md."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from dpmesh.accounting import Accounting, cap, rho_to_epsilon
from dpmesh.cli.descriptors import sources
from dpmesh.ledger import Budget
from dpmesh.policy import Policy
from dpmesh.report import rpcs
from dpmesh.report.plan import MessageReport, Planner

Write = Callable[[str, str], Path]

HEAD = 'syntax = "proto3";\npackage acme;\nimport "dpmesh/v1/privacy.proto";\n'
UNIT = "string id = 1 [(dpmesh.v1.field).unit = {}];\n"
PURE = Budget("pure", "unit", 8.0, 0.0, Accounting.PURE, 3600.0)
ZCDP = Budget("zcdp", "unit", 8.0, 1e-6, Accounting.ZCDP, None)
ALL = Budget("all", "global", 2.0, 1e-6, Accounting.ZCDP, 3600.0)


@pytest.fixture
def report(write: Write) -> Callable[..., MessageReport]:
    def of(body: str, *budgets: Budget, rate: float = 1.0) -> MessageReport:
        loaded = sources.from_protos([write("m.proto", HEAD + "message M {\n" + body + "}\n")], [])
        return Planner(Policy(), budgets or (PURE, ALL), rate).report(next(loaded.messages()))

    return of


def numeric(rules: str, kind: str = "double", number: int = 2) -> str:
    return f"{kind} v{number} = {number} [(dpmesh.v1.field).numeric = {{{rules}}}];\n"


def test_discrete_laplace_shows_its_deviation_in_the_fields_own_units(report) -> None:
    field = report(UNIT + numeric("lower: 0 upper: 700 epsilon: 1 mechanism: DISCRETE_LAPLACE")).fields[1]
    # A scale of 700 is thousands of grid steps, where the variance is 2 b^2 to six digits.
    assert field.error == pytest.approx(math.sqrt(2) * 700, rel=1e-4)
    assert (field.mechanism, field.model, field.epsilon) == ("discrete_laplace", "local", 1.0)
    assert field.rho == pytest.approx(math.tanh(0.5), abs=1e-8)
    assert field.low == pytest.approx(-40 * 700, rel=1e-3)
    assert field.high == pytest.approx(41 * 700, rel=1e-3)


def test_duchi_has_the_deviation_of_its_two_points(report) -> None:
    field = report(UNIT + numeric("lower: -1 upper: 1 epsilon: 1 mechanism: DUCHI")).fields[1]
    point = (math.e + 1) / (math.e - 1)
    assert field.error == pytest.approx(point, rel=1e-3)
    assert (field.low, field.high) == (pytest.approx(-point, rel=1e-3), pytest.approx(point, rel=1e-3))


def test_in_range_outputs_stay_within_the_bounds(report) -> None:
    field = report(
        UNIT + numeric("lower: 3 upper: 10 epsilon: 1 output: IN_RANGE resolution: 2", "uint32")
    ).fields[1]
    assert (field.low, field.high, field.output) == (3, 10, "3 to 10")


def test_an_aggregates_error_follows_its_sensitivity(report) -> None:
    rules = "lower: 0 upper: 1000 epsilon: 1 sensitivity: {} resolution: 1"
    small, large = (report(numeric(rules.format(sensitivity), "int64")).fields[0] for sensitivity in (1, 10))
    a = math.exp(-1)
    assert small.error == pytest.approx(math.sqrt(2 * a) / (1 - a), rel=1e-9)
    assert large.error == pytest.approx(math.sqrt(2) * 10, rel=1e-2)
    assert small.model == "central"


def test_the_discrete_gaussian_shows_epsilon_at_its_delta(report) -> None:
    rules = "lower: 0 upper: 1000 epsilon: 1 delta: 1e-6 sensitivity: 5 mechanism: DISCRETE_GAUSSIAN resolution: 1"
    found = report(numeric(rules, "int64"))
    field = found.fields[0]
    assert field.epsilon == pytest.approx(1.0, rel=1e-6)
    assert field.delta == 1e-6
    assert field.error == pytest.approx(5 / math.sqrt(2 * field.rho), rel=1e-6)
    assert found.epsilon == pytest.approx(rho_to_epsilon(found.rho, 1e-6))


def test_categories_show_how_often_they_are_true(report) -> None:
    found = report(
        UNIT + 'string c = 2 [(dpmesh.v1.field).categorical = {epsilon: 2 domain: ["a", "b", "c"]}];\n'
    )
    field = found.fields[1]
    assert field.truth == pytest.approx(math.exp(2) / (math.exp(2) + 2), abs=1e-12)
    assert (field.output, field.error, field.mechanism) == ("one of 3", None, "k_randomized_response")


def test_the_epsilon_of_a_repeated_field_is_that_of_all_its_elements(report) -> None:
    many = "repeated double v = 2 [(dpmesh.v1.field) = {numeric: {lower: 0 upper: 1 epsilon: 1} max_items: 10}];\n"
    field = report(UNIT + many).fields[1]
    assert (field.elements, field.epsilon) == (10, 1.0)
    assert field.rho == pytest.approx(10 * 0.1 * math.tanh(0.05), abs=1e-7)


def test_numbers_of_elements_that_are_public_are_shown(report) -> None:
    """On what is in a batch as well: the batch itself has no line."""
    rules = "numeric: {lower: 0 upper: 1 epsilon: 0.5} max_items: 2 length: PUBLIC"
    row = f"message Row {{ repeated double v = 1 [(dpmesh.v1.field) = {{{rules}}}]; string note = 2; }}\n"
    batch = "repeated Row rows = 2 [(dpmesh.v1.field) = {max_items: 4 length: PUBLIC}];\n"
    _, values, note = report(UNIT + row + batch).fields
    assert values.output.endswith("; the number of rows as it is; the number of elements as it is")
    assert "number" not in note.output


def test_fields_of_repeated_messages_count_every_instance(report) -> None:
    row = "message Row { double v = 1 [(dpmesh.v1.field).numeric = {lower: 0 upper: 1 epsilon: 0.5}]; }\n"
    found = report(UNIT + row + "repeated Row rows = 2 [(dpmesh.v1.field).max_items = 4];\n")
    assert (found.fields[1].path, found.fields[1].elements, found.fields[1].epsilon) == ("rows[].v", 4, 2.0)
    assert found.epsilon == 2.0


def test_what_is_not_noised_says_how_it_leaves(report) -> None:
    found = report(
        UNIT
        + "string p = 2 [(dpmesh.v1.field).public = {}];\nstring s = 3 [(dpmesh.v1.field).suppress = {}];\n"
        "string n = 4;\n"
    )
    outputs = {field.path: (field.kind, field.output, field.origin) for field in found.fields}
    assert outputs == {
        "id": ("unit", "pseudonym per 1 d", "annotation"),
        "p": ("public", "as it is", "annotation"),
        "s": ("suppress", "nothing", "annotation"),
        "n": ("public", "as it is", "unannotated"),
    }
    assert (found.epsilon, found.payments) == (0.0, ())


@pytest.mark.parametrize(
    ("rules", "output"),
    [
        ("{form: RAW}", "as it is"),
        ("{form: SUPPRESSED}", "nothing"),
        ("{epoch: {seconds: 5400}}", "pseudonym per 1 h 30 min"),
        ("{normalize: AS_IS}", "pseudonym per 1 d"),
        ("{normalize: [NFC, CASE_FOLD]}", "pseudonym per 1 d, charged by NFC CASE_FOLD"),
        ("{form: RAW normalize: STRIP}", "as it is, charged by STRIP"),
    ],
)
def test_how_the_units_id_leaves(report, rules: str, output: str) -> None:
    unit = f"string id = 1 [(dpmesh.v1.field).unit = {rules}];\n"
    assert report(unit + numeric("lower: 0 upper: 1 epsilon: 1")).fields[0].output == output


def test_how_long_a_windows_budget_lasts(report) -> None:
    body = UNIT + numeric("lower: 0 upper: 1 epsilon: 0.5")
    (payment,) = report(body, PURE, rate=1 / 60).payments
    assert (payment.budget, payment.unit, payment.messages) == ("pure", "id", 16)
    assert payment.share == pytest.approx(0.5 / 8)
    assert payment.seconds == pytest.approx(16 * 60)


def test_a_rate_that_a_window_covers_never_spends_it(report) -> None:
    body = UNIT + numeric("lower: 0 upper: 1 epsilon: 0.5")
    assert report(body, PURE, rate=16 / 3600).payments[0].seconds is None
    assert report(body, PURE, rate=17 / 3600).payments[0].seconds is not None


def test_a_lifetime_budget_is_always_spent_in_the_end(report) -> None:
    body = UNIT + numeric("lower: 0 upper: 1 epsilon: 0.5")
    (payment,) = report(body, ZCDP, rate=1e-9).payments
    assert payment.messages == cap(Accounting.ZCDP, 8.0, 1e-6) // math.ceil(0.5e9 * math.tanh(0.25))
    assert payment.seconds == pytest.approx(payment.messages * 1e9)


def test_everyone_pays_for_aggregates_and_every_budget_of_the_key_for_a_unit(report) -> None:
    body = UNIT + numeric("lower: 0 upper: 1 epsilon: 0.5")
    body += numeric("lower: 0 upper: 1 epsilon: 0.25 sensitivity: 0.1", number=3)
    payments = report(body, PURE, ZCDP, ALL).payments
    assert [(entry.budget, entry.unit, entry.epsilon) for entry in payments] == [
        ("pure", "id", 0.5),
        ("zcdp", "id", 0.5),
        ("all", "", 0.25),
    ]


@pytest.mark.parametrize(
    ("body", "budget", "rule"),
    [
        (UNIT + numeric("lower: 0 upper: 1 epsilon: 9"), PURE, "over-budget"),
        (UNIT + numeric("lower: 0 upper: 1 epsilon: 1"), ALL, "no-budget"),
        (numeric("lower: 0 upper: 1 epsilon: 1"), PURE, "no-budget"),
        (
            UNIT + numeric("lower: 0 upper: 1 epsilon: 1 delta: 1e-6 mechanism: DISCRETE_GAUSSIAN"),
            PURE,
            "accounting",
        ),
        (UNIT + numeric("lower: 0 upper: 0 epsilon: 1"), PURE, "bounds"),
    ],
)
def test_what_can_not_be_released_says_why(report, body: str, budget: Budget, rule: str) -> None:
    found = report(body, budget)
    assert found.protected
    assert f"[{rule}]" in found.refused
    assert found.payments == ()


def test_comparing_finds_what_changed_and_nothing_else(report) -> None:
    other = numeric("lower: 0 upper: 1 epsilon: 1", number=3)
    old = {"acme.M": report(UNIT + numeric("lower: 0 upper: 1 epsilon: 1") + other)}
    new = {"acme.M": report(UNIT + numeric("lower: 0 upper: 1 epsilon: 2") + other)}
    assert rpcs.compare(old, old) == []
    (change,) = rpcs.compare(old, new)
    assert [field.path for field in change.fields] == ["v2"]
    assert (change.fields[0].old.epsilon, change.fields[0].new.epsilon) == (1.0, 2.0)
    assert change.fields[0].old.error > change.fields[0].new.error
    assert (change.old.epsilon, change.new.epsilon) == (2.0, 3.0)


def test_comparing_fields_and_messages_that_come_and_go(report) -> None:
    old = {
        "acme.M": report(UNIT + numeric("lower: 0 upper: 1 epsilon: 1")),
        "acme.Gone": MessageReport("acme.Gone", True),
    }
    new = {"acme.M": report(UNIT + numeric("lower: 0 upper: 1 epsilon: 1", number=3))}
    fields, gone = rpcs.compare(old, new)
    assert [(entry.path, entry.old is None, entry.new is None) for entry in fields.fields] == [
        ("v3", True, False),
        ("v2", False, True),
    ]
    assert (gone.message, gone.new) == ("acme.Gone", None)


GAUSSIAN = (
    "mechanism: DISCRETE_GAUSSIAN epsilon: {} delta: 1e-6 lower: 0 upper: 1000 resolution: 1 sensitivity: 5"
)
LARGE = Budget("all", "global", 20.0, 1e-6, Accounting.ZCDP, 3600.0)
LAPLACE = "epsilon: {} lower: 0 upper: 1000 resolution: 1 sensitivity: 5"


@pytest.mark.parametrize(("pure", "gaussian"), [(0.25, 0.25), (0.4, 0.1), (0.1, 0.4), (2, 0.5)])
def test_a_message_loses_no_more_than_its_parts_together(report, pure: float, gaussian: float) -> None:
    """Converted to zCDP and back, a large pure part would count for more than twice itself."""
    found = report(
        numeric(LAPLACE.format(pure), "int64", 1) + numeric(GAUSSIAN.format(gaussian), "int64", 2),
        LARGE,
    )
    assert found.epsilon == pytest.approx(pure + gaussian, rel=1e-6)
    assert found.epsilon < rho_to_epsilon(found.rho, 1e-6)
    assert found.delta == 1e-6


def test_many_small_parts_are_still_converted_together(report) -> None:
    """There zCDP's sum is the smaller of the two."""
    fields = [numeric(LAPLACE.format(0.1), "int64", number) for number in range(1, 60)]
    found = report("".join(fields) + numeric(GAUSSIAN.format(0.1), "int64", 60), LARGE)
    assert found.epsilon == pytest.approx(rho_to_epsilon(found.rho, 1e-6), rel=1e-9)
    assert found.epsilon < 59 * 0.1


def test_a_pure_message_has_no_delta(report) -> None:
    assert report(numeric(LAPLACE.format(0.1), "int64", 1), ALL).delta == 0.0
