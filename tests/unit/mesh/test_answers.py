"""Memoized answers: the same for a unit, value and epoch; paid for once, never for nothing; gone with the epoch."""

import asyncio
import itertools
import math
from collections import Counter
from functools import partial

import pytest

import dpmesh
from dpmesh.errors import AnnotationError, BudgetExhaustedError, LedgerError, ProtectionError
from dpmesh.ledger import MemoryStore
from dpmesh.mesh.answers import Answers
from dpmesh.policy import Policy
from dpmesh.policy.kinds import memoize
from dpmesh.policy.overlay_file import parse
from tests.support.meshes import SteadyLedger, assembled
from tests.support.protos import compiled
from tests.support.reports import charged

HOUR, DAY = 3600.0, 86_400.0
# The answers to its 3 + 2 values cost epsilon 5 in each epoch, and every message costs 0.5 for `fresh`.
TYPES = compiled(
    """message Report { string id = 1 [(dpmesh.v1.field).unit = {form: SUPPRESSED}];
        State state = 2 [(dpmesh.v1.field) = {categorical: {epsilon: 1} memoize: {}}];
        bool on = 3 [(dpmesh.v1.field) = {categorical: {epsilon: 1} memoize: {}}];
        bool fresh = 4 [(dpmesh.v1.field).categorical = {epsilon: 0.5}];
        string kept = 5 [(dpmesh.v1.field).public = {}]; }
    message Still { string id = 1 [(dpmesh.v1.field).unit = {}];
        State state = 2 [(dpmesh.v1.field) = {categorical: {epsilon: 1} memoize: {}}]; }
    message Hourly { string id = 1 [(dpmesh.v1.field).unit = {}];
        bool on = 2 [(dpmesh.v1.field) = {categorical: {epsilon: 1} memoize: {epoch: {seconds: 3600}}}]; }
    message Box { google.protobuf.Any any = 1; }
    enum State { A = 0; B = 1; C = 2; }"""
)
FIRST, LATER = 5.5, 0.5
NOON = 1000.5 * DAY


def settings(epsilon=100.0, window="24h", on_exhausted="reject", url="memory:", **more):
    budget = {
        "name": "day",
        "epsilon": epsilon,
        "accounting": "pure",
        "window": window,
        "on_exhausted": on_exhausted,
    }
    return {"ledger": {"url": url}, "budget": [budget], **more}


def report(unit="N1", state=1, **values):
    return TYPES.Report(id=unit, state=state, kept="k", **values)


def shown(receipt):
    return receipt.message.state, receipt.message.on


async def table(mesh, unit="N1"):
    """All answers to a unit."""
    return [
        shown(await mesh.release(report(unit, state=state, on=on)))
        for state in range(3)
        for on in (False, True)
    ]


async def test_the_first_message_pays_for_all_answers_and_later_ones_for_none():
    async with dpmesh.open(settings(), clock=lambda: NOON) as mesh:
        costs = [(await mesh.release(report(state=number % 3))).epsilon for number in range(6)]
        assert costs == [FIRST] + [LATER] * 5
        assert (await mesh.release(TYPES.Still(id="N1"))).epsilon == 3.0
        assert (await mesh.release(TYPES.Still(id="N1", state=2))).epsilon == 0.0
        assert await charged(mesh) == {"day": [FIRST + 5 * LATER + 3]}


async def test_fields_with_equal_rules_have_answers_of_their_own():
    """Of 200 units, one of the four pairs of answers is missing less than once in 1e6: the rarest has a chance of 0.072."""
    twins = compiled(
        """message Twins { string id = 1 [(dpmesh.v1.field).unit = {form: SUPPRESSED}];
            bool one = 2 [(dpmesh.v1.field) = {categorical: {epsilon: 1} memoize: {}}];
            bool two = 3 [(dpmesh.v1.field) = {categorical: {epsilon: 1} memoize: {}}]; }"""
    )
    async with dpmesh.open(settings(), clock=lambda: NOON) as mesh:
        found = [(await mesh.release(twins.Twins(id=f"u{unit}"))).message for unit in range(200)]
    assert {(out.one, out.two) for out in found} == {(a, b) for a in (False, True) for b in (False, True)}


def test_answers_of_a_field_under_another_law_have_another_label():
    def label(epsilon):
        types = compiled(
            f"""message M {{ string id = 1 [(dpmesh.v1.field).unit = {{}}];
                bool on = 2 [(dpmesh.v1.field) = {{categorical: {{epsilon: {epsilon}}} memoize: {{}}}}]; }}"""
        )
        (field,) = (entry for entry in Policy().plan(types.M.DESCRIPTOR).fields if entry.mechanism_name)
        return memoize.label_of(field)

    assert label(1) != label(2)


async def test_a_cost_does_not_depend_on_the_value():
    for state in range(3):
        async with dpmesh.open(settings(), clock=lambda: NOON) as mesh:
            assert [(await mesh.release(report(state=state))).epsilon for _ in range(2)] == [FIRST, LATER]


async def test_a_hundred_messages_say_no_more_than_one():
    async with dpmesh.open(settings(200.0), clock=lambda: NOON) as mesh:
        found = {
            (state, shown(await mesh.release(report(state=state)))) for _ in range(100) for state in range(3)
        }
        assert len(found) == 3


async def test_units_have_answers_of_their_own_with_the_law_of_the_mechanism():
    """A code of 0 is the truth. False alarms: 13 counts, each more than 6 standard deviations off, 2e-9 each."""
    units = 2000
    async with dpmesh.open(settings(), clock=lambda: NOON) as mesh:
        priced = mesh.snapshot.billing.price(TYPES.Report)
        fields = [field for field in priced.plan.fields if field.memo is not None]
        answers, found = Answers(mesh.ledger), []
        await mesh.ledger.hold_keys([DAY])
        for number in range(units):
            unit_epoch = answers.of(priced.memos, priced.plan.snapshot(report(f"N{number}")), "")
            tables = [
                unit_epoch.codes(memoize.label_of(field), field.payload.mechanism.draws, field.memo.states)
                for field in fields
            ]
            found.append([code == 0 for table in tables for code in table])
    truths = [math.e / (math.e + 2)] * 3 + [math.e / (math.e + 1)] * 2
    for place, p in enumerate(truths):
        count = sum(row[place] for row in found)
        assert abs(count - units * p) < 6 * math.sqrt(units * p * (1 - p))
    # Answers to two values, in two fields and of neighbouring units are independent.
    pairs = Counter((row[0], row[1], following[3]) for row, following in itertools.pairwise(found))
    assert len(pairs) == 8
    for truth, count in pairs.items():
        p = math.prod(
            truths[place] if true else 1 - truths[place] for place, true in zip((0, 1, 3), truth, strict=True)
        )
        assert abs(count - units * p) < 6 * math.sqrt(units * p * (1 - p))


async def test_the_next_epoch_is_paid_anew_and_has_other_answers():
    now = [NOON]
    async with dpmesh.open(settings(1e4), clock=lambda: now[0]) as mesh:
        first = [await table(mesh, f"N{number}") for number in range(40)]
        now[0] += DAY
        receipt = await mesh.release(report("N0"))
        assert receipt.epsilon == FIRST
        assert [await table(mesh, f"N{number}") for number in range(40)] != first
        now[0] -= DAY  # An epoch never moves back: nothing of an earlier day is told once more.
        assert (await mesh.release(report("N0"))).epsilon == LATER


async def test_replicas_and_restarts_give_the_same_answers_at_no_new_cost(tmp_path):
    config = settings(url=f"sqlite:///{tmp_path}/ledger.db")
    async with dpmesh.open(config, clock=lambda: NOON) as one, dpmesh.open(config, clock=lambda: NOON) as two:
        assert (await one.release(report())).epsilon == FIRST
        assert (await two.release(report())).epsilon == LATER
        found = await table(one)
        assert await table(two) == found
    async with dpmesh.open(config, clock=lambda: NOON) as again:
        assert await table(again) == found
        assert await charged(again) == {"day": [FIRST + 19 * LATER]}


async def test_a_clock_that_went_back_before_a_restart_opens_no_earlier_epoch(tmp_path):
    config, now = settings(url=f"sqlite:///{tmp_path}/ledger.db"), [NOON]
    found = []
    for moment in (NOON, NOON + DAY, NOON, NOON - 5 * DAY):
        now[0] = moment
        async with dpmesh.open(config, clock=lambda: now[0]) as mesh:
            found.append((await mesh.release(report())).epsilon)
    assert found == [FIRST, FIRST, LATER, LATER]


async def test_ledgers_of_their_own_give_other_answers():
    found = []
    for _ in range(2):
        async with dpmesh.open(settings(1e4), clock=lambda: NOON) as mesh:
            found.append([await table(mesh, f"N{number}") for number in range(40)])
    assert found[0] != found[1]


async def test_first_messages_at_once_pay_once_in_a_process_and_at_least_once_in_all(tmp_path):
    config = settings(url=f"sqlite:///{tmp_path}/ledger.db")
    async with dpmesh.open(config, clock=lambda: NOON) as one, dpmesh.open(config, clock=lambda: NOON) as two:
        found = await asyncio.gather(*(mesh.release(report()) for mesh in (one, two) for _ in range(20)))
        assert len({shown(each) for each in found}) == 1
        paid = [sum(each.epsilon == FIRST for each in part) for part in (found[:20], found[20:])]
        assert sum(paid) >= 1
        assert max(paid) <= 1
    async with dpmesh.open(config, clock=lambda: NOON) as mesh:
        assert await charged(mesh) == {"day": [40 * LATER + 5 * sum(paid)]}


class _Failing(SteadyLedger.func):
    """A ledger that can't record, or can't tell, as often as it is told."""

    failures = 0
    what = "redeem_once"

    async def redeem_once(self, name, until):
        self._fail("redeem_once")
        return await super().redeem_once(name, until)

    async def redeemed(self, names):
        self._fail("redeemed")
        return await super().redeemed(names)

    def _fail(self, what):
        if what == self.what and self.failures:
            self.failures -= 1
            raise LedgerError("the disk is full")


@pytest.mark.parametrize(("what", "costs"), [("redeem_once", 2 * FIRST), ("redeemed", FIRST)])
async def test_a_failure_between_charge_and_record_is_paid_twice_and_never_for_nothing(what, costs):
    mesh = assembled(settings(), clock=lambda: NOON, ledger=partial(_Failing, monotonic=lambda: 0.0))
    async with mesh:
        mesh.ledger.failures, mesh.ledger.what = 1, what
        with pytest.raises(LedgerError):
            await mesh.release(report())
        assert (await mesh.release(report())).epsilon == FIRST
        assert (await mesh.release(report())).epsilon == LATER
        assert await charged(mesh) == {"day": [costs + LATER]}


@pytest.mark.parametrize("step", ["redeemed", "debit", "redeem_once"])
async def test_a_cancelled_message_leaves_no_answer_unpaid(step):
    store, reached, go = MemoryStore(), asyncio.Event(), asyncio.Event()
    original = getattr(store, step)

    async def waits(*arguments):
        reached.set()
        await go.wait()
        return await original(*arguments)

    mesh = assembled(settings(), clock=lambda: NOON, store=store)
    async with mesh:
        setattr(store, step, waits)
        first = asyncio.create_task(mesh.release(report()))
        await reached.wait()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        go.set()
        costs = [(await mesh.release(report())).epsilon for _ in range(2)]
        # What was under way may have been recorded by now. What was recorded is charged.
        (spent,) = (await charged(mesh))["day"]
        assert spent >= FIRST + LATER * (2 if costs[0] == LATER else 1)
        assert costs[1] == LATER


async def test_a_changed_rule_is_paid_anew():
    async with dpmesh.open(settings(), clock=lambda: NOON) as mesh:
        assert (await mesh.release(TYPES.Still(id="N1"))).epsilon == 3.0
        rules = {"categorical": {"epsilon": 2.0}, "memoize": {}}
        await mesh.swap(Policy(_overlay({f"{TYPES.package}.Still.state": rules})))
        assert (await mesh.release(TYPES.Still(id="N1"))).epsilon == 6.0
        assert (await mesh.release(TYPES.Still(id="N1"))).epsilon == 0.0


def _overlay(fields):
    return parse({"fields": fields}, "test")


async def test_each_consumer_pays_its_own_quota_and_the_budget_pays_once():
    quota = {"quota": [{"name": "each", "under": "day", "epsilon": 50.0}]}
    async with dpmesh.open(settings(**quota), clock=lambda: NOON) as mesh:
        found = [
            await mesh.release(report(), consumer=consumer)
            for consumer in ("acme", "", "globex", "acme", "", "globex")
        ]
        assert len({shown(each) for each in found}) == 1
        assert await charged(mesh) == {"day": [FIRST + 5 * LATER], "each": [FIRST + LATER] * 3}


async def test_a_quota_is_paid_for_each_consumer_and_unit_however_their_names_are_cut():
    """The names that say what is paid are of the consumer and the unit: "ab" and "c" are not "a" and "bc"."""
    quota = {"quota": [{"name": "each", "under": "day", "epsilon": 50.0}]}
    async with dpmesh.open(settings(**quota), clock=lambda: NOON) as mesh:
        for consumer, unit in (("ab", "c"), ("a", "bc")):
            await mesh.release(report(unit), consumer=consumer)
        assert await charged(mesh) == {"day": [FIRST] * 2, "each": [FIRST] * 2}


async def test_a_stream_replays_as_single_messages_do():
    async with dpmesh.open(settings(), clock=lambda: NOON) as mesh:
        stream = mesh.stream()
        found = [await stream.release(report()) for _ in range(3)]
        assert [each.epsilon for each in found] == [FIRST, LATER, LATER]
        assert len({shown(each) for each in [*found, await mesh.release(report())]}) == 1
        stream.close()


async def test_observing_accounts_for_answers_once_and_sends_what_is():
    async with dpmesh.open(settings(mode="observe"), clock=lambda: NOON) as mesh:
        found = [await mesh.release(report()) for _ in range(3)]
        assert [each.epsilon for each in found] == [FIRST, LATER, LATER]
        assert all(each.message.state == 1 for each in found)
        assert await charged(mesh) == {"day": [FIRST + 2 * LATER]}


# -- windows and budgets ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", ["1h", "36h", "25h"])
async def test_an_epoch_lies_in_one_window_of_each_budget_that_pays(window):
    async with dpmesh.open(settings(window=window), clock=lambda: NOON) as mesh:
        with pytest.raises(AnnotationError, match="memoize"):
            await mesh.release(TYPES.Still(id="N1"))
        if window != "1h":
            assert (await mesh.release(TYPES.Hourly(id="N1"))).epsilon == 2.0


@pytest.mark.parametrize("window", ["24h", "48h", "lifetime"])
async def test_windows_of_whole_epochs_pay(window):
    async with dpmesh.open(settings(window=window), clock=lambda: NOON) as mesh:
        assert (await mesh.release(TYPES.Still(id="N1"))).epsilon == 3.0


async def test_answers_that_no_budget_can_pay_for_are_a_configuration_error():
    for epsilon, message in ((2.9, TYPES.Still(id="N1")), (5.4, report())):
        async with dpmesh.open(settings(epsilon), clock=lambda: NOON) as mesh:
            with pytest.raises(AnnotationError, match="over-budget"):
                await mesh.release(message)


async def test_in_an_any_a_memoized_type_is_refused():
    async with dpmesh.open(settings(), clock=lambda: NOON) as mesh:
        box = TYPES.Box()
        box.any.Pack(report())
        with pytest.raises(ProtectionError, match="memoized"):
            await mesh.release(box)


# -- on_exhausted = "replay" ------------------------------------------------------------------------------------------


async def test_an_exhausted_budget_replays_what_is_paid_and_blanks_the_rest():
    async with dpmesh.open(settings(6.0, on_exhausted="replay"), clock=lambda: NOON) as mesh:
        paid = [await mesh.release(report(fresh=True)) for _ in range(2)]
        assert [each.decision for each in paid] == ["released", "released"]
        for _ in range(3):
            receipt = await mesh.release(report(fresh=True))
            assert (receipt.decision, receipt.epsilon, receipt.rho) == ("replayed", 0.0, 0.0)
            assert shown(receipt) == shown(paid[0])
            assert (receipt.message.fresh, receipt.message.kept) == (False, "k")
        assert await charged(mesh) == {"day": [6.0]}


async def test_a_unit_that_has_not_paid_for_its_epoch_is_refused():
    now = [NOON]
    config = settings(6.0, window="48h", on_exhausted="replay")
    async with dpmesh.open(config, clock=lambda: now[0]) as mesh:
        for _ in range(2):
            await mesh.release(report())
        now[0] += DAY
        assert now[0] // (2 * DAY) == NOON // (2 * DAY)
        for _ in range(2):
            with pytest.raises(BudgetExhaustedError):
                await mesh.release(report())
        assert (await mesh.release(report("N2"))).decision == "released"


async def test_after_a_restart_an_exhausted_budget_still_replays(tmp_path):
    config = settings(6.0, on_exhausted="replay", url=f"sqlite:///{tmp_path}/ledger.db")
    async with dpmesh.open(config, clock=lambda: NOON) as mesh:
        first = [await mesh.release(report()) for _ in range(2)]
    async with dpmesh.open(config, clock=lambda: NOON) as mesh:
        receipt = await mesh.release(report())
        assert (receipt.decision, shown(receipt)) == ("replayed", shown(first[0]))


async def test_a_message_without_memoized_fields_is_refused():
    types = compiled(
        """message M { string id = 1 [(dpmesh.v1.field).unit = {}];
        bool b = 2 [(dpmesh.v1.field).categorical = {epsilon: 0.5}]; }"""
    )
    async with dpmesh.open(settings(0.5, on_exhausted="replay"), clock=lambda: NOON) as mesh:
        await mesh.release(types.M(id="N1"))
        with pytest.raises(BudgetExhaustedError):
            await mesh.release(types.M(id="N1"))


async def test_replayed_messages_are_padded_as_others_are():
    types = compiled(
        """message M { option (dpmesh.v1.message) = {pad_to: 256}; string id = 1 [(dpmesh.v1.field).unit = {}];
        bool a = 2 [(dpmesh.v1.field) = {categorical: {epsilon: 1} memoize: {}}];
        bool b = 3 [(dpmesh.v1.field).categorical = {epsilon: 0.5}]; }"""
    )
    async with dpmesh.open(settings(2.5, on_exhausted="replay"), clock=lambda: NOON) as mesh:
        found = [await mesh.release(types.M(id="N1")) for _ in range(2)]
        assert [each.decision for each in found] == ["released", "replayed"]
        assert [each.message.ByteSize() for each in found] == [256, 256]
