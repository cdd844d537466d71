"""The corridor: check, charge, sample. What a mesh refuses, what it charges, and what it never lets out."""

import asyncio
import gc
import logging
import multiprocessing
import os
import random
import sys
from collections import Counter

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool

import dpmesh
from dpmesh.errors import AnnotationError, BudgetExhaustedError, ConfigError, LedgerError, ProtectionError
from dpmesh.ledger import MemoryStore
from tests.support.meshes import assembled
from tests.support.protos import compiled

NUM = "(dpmesh.v1.field).numeric"
CAT = "(dpmesh.v1.field).categorical"
TYPES = compiled(
    f"""message Report {{ string id = 1 [(dpmesh.v1.field).unit = {{}}]; double a = 2 [{NUM} = {{lower: 0 upper: 100 epsilon: 0.5}}];
    bool b = 3 [{CAT} = {{epsilon: 0.5}}]; string kept = 4 [(dpmesh.v1.field).public = {{}}]; }}
    message Total {{ double sum = 1 [{NUM} = {{lower: 0 upper: 1e6 epsilon: 1 sensitivity: 100}}]; }}
    message Half {{ string id = 1 [(dpmesh.v1.field).unit = {{}}]; bool b = 2 [{CAT} = {{epsilon: 0.5}}]; }}
    message Batch {{ repeated Report reports = 1; }}
    message Plain {{ string s = 1; }}
    message Noisy {{ double g = 1 [{NUM} = {{lower: 0 upper: 100 epsilon: 1 delta: 1e-6 mechanism: DISCRETE_GAUSSIAN}}]; }}"""
)
DAY = 86_400.0


def settings(**changes):
    unit = {"name": "unit-day", "key": "unit", "epsilon": 3.0, "accounting": "pure", "window": "24h"}
    fleet = {"name": "fleet-day", "key": "global", "epsilon": 2.0, "accounting": "pure", "window": "24h"}
    return {"ledger": {"url": "memory:"}, "budget": [{**unit, **changes.pop("unit", {})}, fleet], **changes}


def report(unit="N1", **values):
    return TYPES.Report(id=unit, a=50, kept="k", **values)


async def test_a_release_is_charged_to_its_unit_until_the_budget_is_spent():
    async with dpmesh.open(settings()) as mesh:
        for _ in range(3):
            receipt = await mesh.release(report())
            assert (receipt.decision, receipt.epsilon, receipt.message.kept) == ("released", 1.0, "k")
            assert receipt.message.id not in ("N1", "")
        with pytest.raises(BudgetExhaustedError) as caught:
            await mesh.release(report())
        assert caught.value.budget == "unit-day"
        assert 0 < caught.value.retry_after <= DAY
        assert (await mesh.release(report("N2"))).decision == "released"


async def test_aggregates_are_charged_to_the_global_budget():
    async with dpmesh.open(settings()) as mesh:
        for _ in range(2):
            await mesh.release(TYPES.Total(sum=5))
        with pytest.raises(BudgetExhaustedError, match="fleet-day"):
            await mesh.release(TYPES.Total(sum=5))


async def test_a_batch_is_all_or_nothing():
    async with dpmesh.open(settings()) as mesh:
        for _ in range(3):
            await mesh.release(report("busy"))
        with pytest.raises(BudgetExhaustedError):
            await mesh.release(TYPES.Batch(reports=[report("fresh"), report("busy")]))
        for _ in range(3):
            await mesh.release(report("fresh"))


async def test_one_unit_twice_in_a_batch_pays_twice():
    async with dpmesh.open(settings()) as mesh:
        receipt = await mesh.release(TYPES.Batch(reports=[report(), report()]))
        assert receipt.epsilon == 2.0
        await mesh.release(report())
        with pytest.raises(BudgetExhaustedError):
            await mesh.release(report())


async def test_the_budget_renews_with_its_window_and_never_when_the_clock_goes_back():
    now = [10 * DAY + 5]
    async with dpmesh.open(settings(), clock=lambda: now[0]) as mesh:
        for _ in range(3):
            await mesh.release(report())
        first = (await mesh.release(report("other"))).message.id
        for moment in (now[0] - 3 * DAY, now[0] + 10):
            now[0] = moment
            with pytest.raises(BudgetExhaustedError):
                await mesh.release(report())
        now[0] += DAY
        assert (await mesh.release(report())).decision == "released"
        assert (await mesh.release(report("other"))).message.id != first, "the pseudonym outlived its epoch"


async def test_suppress_sends_what_needs_no_noise_and_costs_nothing():
    async with dpmesh.open(settings(unit={"on_exhausted": "suppress"})) as mesh:
        for _ in range(3):
            await mesh.release(report())
        receipt = await mesh.release(report(b=True))
        assert (receipt.decision, receipt.epsilon) == ("suppressed", 0.0)
        assert receipt.message == TYPES.Report(id=receipt.message.id, kept="k")


async def test_observe_changes_nothing_and_says_so(caplog):
    with caplog.at_level(logging.WARNING, logger="dpmesh"):
        async with dpmesh.open(settings(mode="observe")) as mesh:
            message = report()
            for _ in range(5):
                receipt = await mesh.release(message)
                assert receipt.message is message
                assert receipt.decision == "observed"
            assert (await mesh.release(TYPES.Report())).decision == "observed"
    assert "UNPROTECTED" in caplog.text
    assert "would have been refused" in caplog.text
    assert "N1" not in caplog.text


async def test_types_without_annotations_pass_untouched():
    async with dpmesh.open(settings()) as mesh:
        message = TYPES.Plain(s="x")
        receipt = await mesh.release(message)
        assert receipt.message is message
        assert receipt.decision == "unprotected"
        assert (mesh.protects(TYPES.Plain), mesh.protects(TYPES.Report)) == (False, True)


async def test_nothing_leaves_before_opening_or_after_closing():
    mesh = dpmesh.open(settings())
    with pytest.raises(LedgerError, match="not open"):
        await mesh.release(report())
    async with mesh:
        await mesh.release(report())
    with pytest.raises(LedgerError, match="not open"):
        await mesh.release(report())


async def test_a_release_that_no_budget_pays_for_is_refused():
    only_global = {"ledger": {"url": "memory:"}, "budget": [settings()["budget"][1]]}
    async with dpmesh.open(only_global) as mesh:
        for _ in range(2):
            with pytest.raises(AnnotationError, match="no-budget"):
                await mesh.release(report())


async def test_a_gaussian_does_not_fit_pure_accounting():
    async with dpmesh.open(settings()) as mesh:
        with pytest.raises(AnnotationError, match="accounting"):
            await mesh.release(TYPES.Noisy(g=1))


async def test_a_message_dearer_than_its_budget_is_a_configuration_error():
    async with dpmesh.open(settings(unit={"epsilon": 0.9})) as mesh:
        with pytest.raises(AnnotationError, match="over-budget"):
            await mesh.release(report())


async def test_zcdp_says_when_pure_accounting_would_do():
    budget = {"epsilon": 8.0, "delta": 1e-6, "accounting": "zcdp"}
    big = compiled(
        f"message M {{ string id = 1 [(dpmesh.v1.field).unit = {{}}]; bool b = 2 [{CAT} = {{epsilon: 4}}]; }}"
    )
    async with dpmesh.open(settings(unit=budget)) as mesh:
        with pytest.raises(AnnotationError, match="accounting = 'pure' admits it"):
            await mesh.release(big.M(id="x"))


async def test_a_wrong_type_is_refused():
    async with dpmesh.open(settings()) as mesh:
        with pytest.raises(ProtectionError, match="WRONG_TYPE"):
            await mesh.release(b"raw bytes")


async def test_a_bad_annotation_of_a_loaded_module_fails_at_start(monkeypatch):
    bad = compiled(f"message M {{ double a = 1 [{NUM} = {{lower: 2 upper: 1 epsilon: 1}}]; }}")
    module = type(os)("bad_pb2")
    module.DESCRIPTOR = bad.M.DESCRIPTOR.file
    monkeypatch.setitem(__import__("sys").modules, "bad_pb2", module)
    with pytest.raises(AnnotationError, match="bounds"):
        async with dpmesh.open(settings()):
            pass


async def test_a_policy_that_names_nothing_fails_at_start(tmp_path):
    (tmp_path / "p.yaml").write_text("fields: {acme.Nothing.here: {suppress: {}}}\n")
    with pytest.raises(ConfigError, match="acme.Nothing.here"):
        async with dpmesh.open(settings(), policy=tmp_path / "p.yaml"):
            pass


async def test_an_exception_while_protecting_carries_no_value():
    async with dpmesh.open(settings()) as mesh:
        await mesh.release(report())

        def explode(snapshot, alias):
            raise ValueError(f"temperature was {snapshot}")

        route = mesh.snapshot.billing.price(TYPES.Report)
        object.__setattr__(route.plan, "build", explode)
        with pytest.raises(ProtectionError) as caught:
            await mesh.release(report())
        error = caught.value
        assert "50" not in f"{error!r} {error.__cause__!r} {error.__context__!r}"


async def test_a_thousand_at_once_against_a_budget_for_a_hundred():
    async with dpmesh.open(settings(unit={"epsilon": 100.0})) as mesh:
        outcomes = await asyncio.gather(
            *(mesh.release(report()) for _ in range(1000)), return_exceptions=True
        )
    assert sum(isinstance(outcome, dpmesh.Receipt) for outcome in outcomes) == 100
    assert sum(isinstance(outcome, BudgetExhaustedError) for outcome in outcomes) == 900


def _release_in_child(mesh, pipe):
    async def release():
        values = [(await mesh.release(report("N3"))).message.a for _ in range(2)]
        try:
            await mesh.release(report("N3"))
        except BudgetExhaustedError:
            return values
        raise AssertionError("the child spent more than the budget")

    pipe.send(asyncio.run(release()))


async def test_a_forked_child_draws_its_own_noise_and_shares_the_budget(tmp_path):
    url = f"sqlite:///{tmp_path}/ledger.db"
    async with dpmesh.open(settings(ledger={"url": url}, unit={"epsilon": 4.0})) as mesh:
        await mesh.release(report("N3"))
        await mesh.release(report("N3"))
        context = multiprocessing.get_context("fork")
        here, there = context.Pipe()
        child = context.Process(target=_release_in_child, args=(mesh, there))
        child.start()
        values = await asyncio.to_thread(here.recv)
        child.join()
        assert len(values) == 2
        with pytest.raises(BudgetExhaustedError):
            await mesh.release(report("N3"))


async def test_a_stream_releases_each_message():
    async with dpmesh.open(settings()) as mesh:
        stream = mesh.stream(method="/s/M", direction="request")
        for _ in range(3):
            assert (await stream.release(report())).decision == "released"
        with pytest.raises(BudgetExhaustedError):
            await stream.release(report())
        stream.close()
        stream.close()


async def test_what_leaves_is_what_was_charged_for_though_the_caller_goes_on_with_its_message():
    asked, may_answer = asyncio.Event(), asyncio.Event()

    class SlowStore(MemoryStore):
        async def debit(self, batch):
            asked.set()
            await may_answer.wait()
            return await super().debit(batch)

    async with assembled(settings(), store=SlowStore()) as mesh:
        batch = TYPES.Batch(reports=[report("first")])
        waiting = asyncio.create_task(mesh.release(batch))
        await asked.wait()  # the charge is on its way to the store
        assert not waiting.done()
        batch.reports.add(id="uncharged")
        batch.reports[0].id = "other"
        may_answer.set()
        receipt = await waiting
        assert len(receipt.message.reports) == 1
        fresh = await mesh.release(TYPES.Batch(reports=[report("first")]))
        assert receipt.message.reports[0].id == fresh.message.reports[0].id


async def test_an_exception_while_charging_carries_no_id():
    async with dpmesh.open(settings()) as mesh:
        await mesh.release(report())

        def explode(message, consumer):
            raise ValueError(f"unit was {message.id}")

        object.__setattr__(mesh.snapshot.billing.price(TYPES.Report), "bill", explode)
        with pytest.raises(ProtectionError) as caught:
            await mesh.release(report())
        error = caught.value
        assert "N1" not in f"{error!r} {error.__cause__!r} {error.__context__!r}"


async def test_suppress_refuses_what_would_lack_a_required_field():
    types = compiled(
        f"message M {{ required string id = 1 [(dpmesh.v1.field).unit = {{}}]; required bool b = 2 [{CAT} = {{epsilon: 2}}]; }}",
        "proto2",
    )
    async with dpmesh.open(settings(unit={"on_exhausted": "suppress"})) as mesh:
        await mesh.release(types.M(id="a", b=True))
        with pytest.raises(BudgetExhaustedError):
            await mesh.release(types.M(id="a", b=True))


async def test_a_module_that_loads_lazily_does_not_keep_a_mesh_from_opening(monkeypatch):
    class Lazy(type(os)):
        def __getattr__(self, name):
            raise ImportError(name)

    monkeypatch.setitem(__import__("sys").modules, "lazy", Lazy("lazy"))
    async with dpmesh.open(settings()) as mesh:
        assert (await mesh.release(report())).decision == "released"


async def test_a_type_that_holds_an_annotated_one_of_another_file_is_checked_at_start(monkeypatch):
    inner = compiled(f"message Inner {{ bool b = 1 [{CAT} = {{epsilon: 1}}]; }}")
    file = descriptor_pb2.FileDescriptorProto(
        name="holder.proto", package="holder", dependency=[inner.Inner.DESCRIPTOR.file.name]
    )
    field = file.message_type.add(name="Holder").field.add(name="many", number=1, label=3, type=11)
    field.type_name = f".{inner.Inner.DESCRIPTOR.full_name}"
    module = type(os)("holder_pb2")
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
    module.DESCRIPTOR = descriptor_pool.Default().FindFileByName("holder.proto")
    monkeypatch.setitem(__import__("sys").modules, "holder_pb2", module)
    with pytest.raises(AnnotationError, match="max-items"):
        async with dpmesh.open(settings()):
            pass


async def test_release_now_only_spends_what_is_held():
    async with dpmesh.open(settings(unit={"epsilon": 100.0})) as mesh:
        assert mesh.release_now(report()) is None  # nothing is held yet, and nothing was charged
        assert await mesh.ledger.accounts() == []
        released = 0
        for _ in range(3):
            await mesh.release(report())
            released += 1
        while (receipt := mesh.release_now(report())) is not None:
            assert (receipt.decision, receipt.epsilon) == ("released", 1.0)
            assert receipt.message.id not in ("N1", "")
            released += 1
        assert released > 3, "no lease was held"
        (account,) = await mesh.ledger.accounts()
        assert account.spent == released * 10**9


async def test_release_now_charges_a_message_that_it_refuses_once():
    types = compiled(
        f"message M {{ string id = 1 [(dpmesh.v1.field).unit = {{}}]; double a = 2 [{NUM} = {{lower: 0 upper: 1 epsilon: 1 nan: REJECT}}]; }}"
    )
    async with dpmesh.open(settings(unit={"epsilon": 100.0})) as mesh:
        for _ in range(3):
            await mesh.release(types.M(id="a", a=1))
        before = mesh.ledger.usage(0, b"a")[0]
        with pytest.raises(ProtectionError, match="NaN"):
            mesh.release_now(types.M(id="a", a=float("nan")))
        assert mesh.ledger.usage(0, b"a")[0] - before == 10**9
        with pytest.raises(ProtectionError, match="id is missing"):
            mesh.release_now(types.M(a=1))


async def test_release_now_leaves_everything_else_to_release():
    mesh = dpmesh.open(settings())
    assert mesh.release_now(report()) is None
    async with mesh:
        assert mesh.release_now(TYPES.Plain(s="x")).decision == "unprotected"
        await mesh.release(report())
    assert mesh.release_now(report()) is None
    async with dpmesh.open(settings(mode="observe")) as observing:
        for _ in range(2):
            assert observing.release_now(report()) is None
            assert (await observing.release(report())).decision == "observed"


QUOTA = {"name": "each", "under": "unit-day", "epsilon": 2.0}


def quotas(*entries, **changes):
    return {**settings(**changes), "quota": [{**QUOTA, **entry} for entry in entries or ({},)]}


async def charged(mesh):
    """What was charged, by budget; slices that are not used are returned first."""
    await mesh.ledger.close()
    await mesh.ledger.open()
    spent = {}
    for account in await mesh.ledger.accounts():
        spent.setdefault(account.budget, []).append(account.spent / 1e9)
    return {name: sorted(amounts) for name, amounts in spent.items()}


async def test_each_consumer_has_a_quota_under_the_units_one_budget():
    async with dpmesh.open(quotas()) as mesh:
        for _ in range(2):
            await mesh.release(report(), consumer="a")
        with pytest.raises(BudgetExhaustedError, match="'each'"):
            await mesh.release(report(), consumer="a")
        await mesh.release(report("N2"), consumer="a")
        await mesh.release(report(), consumer="b")
        with pytest.raises(BudgetExhaustedError) as caught:
            await mesh.release(report(), consumer="b")
        assert caught.value.budget == "unit-day"
        assert "N1" not in str(caught.value)


@pytest.mark.parametrize("way", ["release", "release_now", "stream"])
async def test_a_refused_quota_leaves_the_budget_uncharged(way):
    async with dpmesh.open(quotas()) as mesh:
        streams = {consumer: mesh.stream(consumer=consumer) for consumer in "ab"}

        async def send(consumer):
            if way == "stream":
                return await streams[consumer].release(report())
            now = mesh.release_now(report(), consumer=consumer) if way == "release_now" else None
            return now or await mesh.release(report(), consumer=consumer)

        for _ in range(2):
            await send("a")
        for _ in range(5):
            with pytest.raises(BudgetExhaustedError, match="'each'"):
                await send("a")
        await send("b")
        assert await charged(mesh) == {"unit-day": [3.0], "each": [1.0, 2.0]}


async def test_a_refused_budget_leaves_the_quota_uncharged():
    async with dpmesh.open(quotas()) as mesh:
        for consumer in "aab":
            await mesh.release(report(), consumer=consumer)
        with pytest.raises(BudgetExhaustedError, match="'unit-day'"):
            await mesh.release(report(), consumer="c")
        assert await charged(mesh) == {"unit-day": [3.0], "each": [1.0, 2.0]}


async def test_a_quota_may_suppress_where_its_budget_refuses():
    async with dpmesh.open(quotas({"on_exhausted": "suppress"})) as mesh:
        for _ in range(2):
            await mesh.release(report(), consumer="a")
        assert (await mesh.release(report(b=True), consumer="a")).decision == "suppressed"
        await mesh.release(report(), consumer="b")
        with pytest.raises(BudgetExhaustedError, match="'unit-day'"):
            await mesh.release(report(), consumer="b")


async def test_a_quota_too_small_for_a_message_refuses_its_consumers_and_no_others():
    async with dpmesh.open(quotas({"epsilon": 0.5, "consumers": ["small*"]})) as mesh:
        for _ in range(2):
            with pytest.raises(BudgetExhaustedError, match="'each'"):
                await mesh.release(report(), consumer="small-one")
        await mesh.release(report(), consumer="other")
        assert await charged(mesh) == {"unit-day": [1.0]}


async def test_aggregates_have_quotas_under_the_global_budget():
    async with dpmesh.open(quotas({"under": "fleet-day", "epsilon": 1.0})) as mesh:
        for consumer in ("a", "b"):
            await mesh.release(TYPES.Total(sum=5), consumer=consumer)
            with pytest.raises(BudgetExhaustedError, match=r"'each'|'fleet-day'"):
                await mesh.release(TYPES.Total(sum=5), consumer=consumer)
        assert await charged(mesh) == {"fleet-day": [2.0], "each": [1.0, 1.0]}


async def test_a_consumer_that_is_no_text_is_refused_without_its_name():
    async with dpmesh.open(quotas()) as mesh:
        for consumer in ("\ud800-secret", 7, None):
            with pytest.raises(ProtectionError) as caught:
                await mesh.release(report(), consumer=consumer)
            assert "secret" not in f"{caught.value!r} {caught.value.__cause__!r} {caught.value.__context__!r}"
        assert await charged(mesh) == {}


async def test_budgets_by_method_and_direction_are_separate():
    budget = settings()["budget"][0]
    scoped = [
        {**budget, "name": "send", "epsilon": 1.0, "methods": ["/a.B/Send"]},
        {**budget, "name": "rest", "methods": ["/a.B/Ask"], "directions": ["response"]},
    ]
    async with dpmesh.open({"ledger": {"url": "memory:"}, "budget": scoped}) as mesh:
        await mesh.release(report(), method="/a.B/Send")
        with pytest.raises(BudgetExhaustedError, match="'send'"):
            await mesh.release(report(), method="/a.B/Send")
        stream = mesh.stream(method="/a.B/Ask", direction="response")
        for _ in range(3):
            await stream.release(report())
        for method in ("/a.B/Ask", ""):
            with pytest.raises(AnnotationError, match="no-budget"):
                await mesh.release(report(), method=method)


async def test_observe_accounts_for_quotas_and_refuses_nothing(caplog):
    with caplog.at_level(logging.WARNING, logger="dpmesh"):
        async with dpmesh.open(quotas(mode="observe")) as mesh:
            for _ in range(3):
                assert (await mesh.release(report(), consumer="who-asks")).decision == "observed"
            assert await charged(mesh) == {"unit-day": [2.0], "each": [2.0]}
    assert "'each'" in caplog.text
    assert "who-asks" not in caplog.text


async def test_a_thousand_at_once_against_a_quota_for_ten():
    async with dpmesh.open(quotas({"epsilon": 10.0}, unit={"epsilon": 15.0})) as mesh:
        calls = [mesh.release(report(), consumer="ab"[number % 2]) for number in range(1000)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        released = [number % 2 for number, one in enumerate(outcomes) if not isinstance(one, Exception)]
        assert all(isinstance(one, (dpmesh.Receipt, BudgetExhaustedError)) for one in outcomes)
        assert len(released) == 15
        assert max(released.count(0), released.count(1)) <= 10
        assert (await charged(mesh))["unit-day"] == [15.0]


@pytest.mark.parametrize("seed", range(5))
async def test_what_is_released_is_what_all_caps_cover_and_nothing_else_is_charged(seed):
    """Against a model: sums for each account, and a release goes through exactly if all of its accounts cover it."""
    draw = random.Random(seed)
    budget = settings()["budget"][0]
    methods = ("/a.B/Send", "/a.B/Ask")
    config = {
        "ledger": {"url": "memory:"},
        "budget": [
            {**budget, "epsilon": 12.0},
            {**budget, "name": "ask", "epsilon": 5.0, "methods": methods[1:]},
        ],
        "quota": [
            {**QUOTA, "epsilon": 6.0},
            {**QUOTA, "name": "few", "epsilon": 2.0, "consumers": ["c1"], "directions": ["response"]},
            {**QUOTA, "name": "asked", "under": "ask", "epsilon": 3.0},
        ],
    }
    caps = {"unit-day": 12, "ask": 5, "each": 6, "few": 2, "asked": 3}
    now = [10 * DAY]
    model = Counter()
    async with dpmesh.open(config, clock=lambda: now[0]) as mesh:
        for step in range(400):
            if step % 150 == 149:
                now[0] += DAY
                model.clear()
            unit, consumer, method = draw.choice("NM"), draw.choice(["", "c1", "c2"]), draw.choice(methods)
            direction = draw.choice(["request", "response"])
            accounts = [("unit-day", unit), ("each", unit, consumer)]
            if method == "/a.B/Ask":
                accounts += [("ask", unit), ("asked", unit, consumer)]
            if consumer == "c1" and direction == "response":
                accounts.append(("few", unit, consumer))
            covered = all(model[account] < caps[account[0]] for account in accounts)
            release = mesh.release(report(unit), method=method, direction=direction, consumer=consumer)
            if covered:
                await release
                model.update(accounts)
            else:
                with pytest.raises(BudgetExhaustedError) as caught:
                    await release
                assert any(account[0] == caught.value.budget for account in accounts)
        await mesh.ledger.close()
        await mesh.ledger.open()
        for name in caps:
            held = (entry.spent_at(now[0]) for entry in await mesh.ledger.accounts(name))
            assert sorted(amount / 1e9 for amount in held if amount) == sorted(
                amount for account, amount in model.items() if account[0] == name
            )


@pytest.mark.parametrize(
    ("error", "unit", "budget"),
    [
        (BudgetExhaustedError, "N1", {"epsilon": 1.0}),
        (AnnotationError, "N1", {"methods": ["/other/*"]}),
        (ProtectionError, "", {}),
    ],
)
@pytest.mark.parametrize("way", ["release", "stream", "now"])
async def test_a_refused_message_is_gone_when_its_sender_lets_go_of_it(error, unit, budget, way):
    messages = [report(unit) for _ in range(8)]

    async def send(mesh, message):
        stream = mesh.stream()
        if way == "now" and mesh.release_now(message) is not None:
            return
        await (stream if way == "stream" else mesh).release(message)

    async with dpmesh.open(settings(unit=budget)) as mesh:
        refused = 0
        gc.disable()  # Nor does anything wait for the garbage to be collected.
        try:
            for message in messages:
                try:
                    await send(mesh, message)
                except error:
                    refused += 1
                message = None
            await asyncio.sleep(0)
            held = [sys.getrefcount(messages[index]) for index in range(len(messages))]
        finally:
            gc.enable()
    assert refused >= 7
    assert held == [2] * 8


async def refusals(mesh, count, **more):
    """The distinct refusals of as many releases, one after the other."""
    found = []
    for _ in range(count):
        with pytest.raises(BudgetExhaustedError) as caught:
            await mesh.release(report(), **more)
        found.append(caught.value)
    assert len({id(error) for error in found}) == count
    return {(error.budget, error.retry_after and round(error.retry_after, -1)) for error in found}


async def test_who_has_nothing_left_does_not_have_the_ledger_asked_again_and_again():
    now = [1000 * DAY]
    config = settings(**quotas({"name": "each", "epsilon": 2.0}), unit={"epsilon": 100.0})
    async with assembled(config, clock=lambda: now[0], monotonic=lambda: 100.0) as mesh:
        for _ in range(2):
            await mesh.release(report(), consumer="a")
        calls = mesh.ledger.charges
        calls.clear()
        assert await refusals(mesh, 50, consumer="a") == {("each", DAY)}
        assert len(calls) == 1
        await mesh.release(report(), consumer="b")
        await mesh.release(report("N2"), consumer="a")
        calls.clear()
        now[0] += DAY  # A new window is seen at once.
        await mesh.release(report(), consumer="a")
        assert len(calls) == 1


async def test_a_refusal_is_not_believed_for_long_nor_for_less():
    config, moment = settings(unit={"epsilon": 2.5}), [100.0]
    async with assembled(config, monotonic=lambda: moment[0]) as mesh:
        for _ in range(2):
            await mesh.release(report())
        calls = mesh.ledger.charges
        calls.clear()
        await refusals(mesh, 2)
        assert len(calls) == 1
        await mesh.release(TYPES.Half(id="N1"))
        calls.clear()
        moment[0] += 0.11
        await refusals(mesh, 2)
        assert len(calls) == 1
        await refusals(mesh, 2)
        moment[0] += 0.11
        await refusals(mesh, 2)
        assert len(calls) == 2


async def test_a_quota_smaller_than_one_message_promises_nothing_of_its_next_window():
    config = settings(**quotas({"name": "small", "epsilon": 0.5, "consumers": ["a"]}))
    async with dpmesh.open(config) as mesh:
        assert await refusals(mesh, 3, consumer="a") == {("small", None)}
        with pytest.raises(BudgetExhaustedError, match="waiting is no help"):
            await mesh.release(report(), consumer="a")
        await mesh.release(report(), consumer="b")


async def test_a_quota_that_suppresses_does_so_as_often_as_one_asks():
    config = settings(**quotas({"name": "each", "epsilon": 1.0, "on_exhausted": "suppress"}))
    async with dpmesh.open(config) as mesh:
        decisions = [(await mesh.release(report(), consumer="a")).decision for _ in range(4)]
    assert decisions == ["released"] + ["suppressed"] * 3
