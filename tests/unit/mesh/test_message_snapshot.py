"""What is billed is what leaves, whatever another thread makes of a message while it is released."""

import sys
import threading
from contextlib import contextmanager

import pytest
from google.protobuf.message import Message

from dpmesh.errors import ProtectionError
from dpmesh.mesh.pseudonyms import Pseudonyms
from dpmesh.policy import Policy
from tests.support.meshes import assembled
from tests.support.protos import compiled

NUM = "(dpmesh.v1.field).numeric"
PUBLIC = "[(dpmesh.v1.field).public = {}]"
TYPES = compiled(
    f"""message Report {{ string id = 1 [(dpmesh.v1.field).unit = {{}}]; string owner = 2 {PUBLIC};
    double a = 3 [{NUM} = {{lower: 0 upper: 1 epsilon: 1}}]; string note = 4 [(dpmesh.v1.field).suppress = {{}}]; }}
    message Batch {{ repeated Report reports = 1; }}
    message Journey {{ string id = 1 [(dpmesh.v1.field).unit = {{}}]; string owner = 2 {PUBLIC};
    repeated Stop stops = 3 [(dpmesh.v1.field).max_items = 2]; optional string flag = 4 {PUBLIC}; }}
    message Stop {{ double a = 1 [{NUM} = {{lower: 0 upper: 1 epsilon: 1}}]; string owner = 2 {PUBLIC}; }}"""
)
RELEASES = 4000


def settings(**changes):
    unit = {"name": "u", "key": "unit", "epsilon": 1e7, "accounting": "pure", "window": "lifetime", **changes}
    return {"ledger": {"url": "memory:"}, "budget": [unit]}


def report(unit):
    return TYPES.Report(id=unit, owner=unit, a=0.5, note="n")


def batch(*units):
    return TYPES.Batch(reports=[report(unit) for unit in units])


def journey(unit):
    stops = [TYPES.Stop(a=0.5, owner=unit)] * 2
    return TYPES.Journey(id=unit, owner=unit, stops=stops, flag=unit)


@contextmanager
def written(message, one, two):
    """Another thread makes a message equal to one and to the other, in turns, as fast as it can."""
    stop = threading.Event()

    def write():
        while not stop.is_set():
            message.CopyFrom(one)
            message.CopyFrom(two)

    thread, interval = threading.Thread(target=write), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)


def charged_units(mesh):
    """Whom a mesh charged last."""
    return [unit for _, unit, _ in mesh.ledger.bills[-1]]


def owners(message):
    """Whose data is in what left, by the public field that says so."""
    if isinstance(message, TYPES.Batch):
        return [each.owner for each in message.reports]
    if isinstance(message, TYPES.Journey):
        return [message.owner, message.flag, *(stop.owner for stop in message.stops)]
    return [message.owner]


def pseudonyms(message):
    return [each.id for each in (message.reports if isinstance(message, TYPES.Batch) else [message])]


PAIRS = [
    pytest.param(report("A"), report("B"), id="flat"),
    pytest.param(batch("A", "B", "C"), batch("C", "A", "D"), id="batch"),
    pytest.param(batch("A"), batch("B", "C", "D", "E"), id="lengths"),
    pytest.param(journey("A"), journey("B"), id="nested"),
]


@pytest.mark.parametrize(("one", "two"), PAIRS)
@pytest.mark.parametrize("way", ["release", "stream"])
async def test_what_leaves_is_of_the_units_that_were_billed(one, two, way):
    async with assembled(settings()) as mesh:
        message = type(one)()
        message.CopyFrom(one)
        stream = mesh.stream()
        release = mesh.release if way == "release" else stream.release
        seen = set()
        with written(message, one, two):
            for _ in range(RELEASES):
                left = (await release(message)).message
                units = charged_units(mesh)
                billed = [unit.decode() for unit in units]
                assert set(owners(left)) == set(billed)
                assert set(pseudonyms(left)) == {
                    Pseudonyms(mesh.ledger).to("")(unit, 86_400.0).hex() for unit in units
                }
                seen.add(tuple(billed))
        stream.close()
        assert len(seen) <= 2, "a copy is never torn"


async def test_a_message_that_is_changed_while_its_charge_waits_leaves_as_it_was():
    async with assembled(settings()) as mesh:
        for make in (report, batch, journey):
            message = make("first")

            async def change(message=message, make=make):
                message.CopyFrom(make("second"))

            mesh.ledger.before_charge = change
            left = (await mesh.release(message)).message
            assert set(owners(left)) == {"first"}
            assert set(pseudonyms(left)) == {Pseudonyms(mesh.ledger).to("")(b"first", 86_400.0).hex()}


async def test_what_leaves_unprotected_values_aside_is_of_the_same_moment():
    """on_exhausted = "suppress" sends what needs no noise: by the same snapshot, too."""
    async with assembled(settings(epsilon=1.0, on_exhausted="suppress")) as mesh:
        message = report("A")
        await mesh.release(message)
        await mesh.release(report("B"))
        seen = set()
        with written(message, message.__deepcopy__(), report("B")):
            for _ in range(500):
                receipt = await mesh.release(message)
                assert receipt.decision == "suppressed"
                left = receipt.message
                assert left.id == Pseudonyms(mesh.ledger).to("")(left.owner.encode(), 86_400.0).hex()
                seen.add(left.owner)
        assert seen <= {"A", "B"}


async def test_an_observed_message_is_billed_by_one_snapshot():
    async with assembled({**settings(), "mode": "observe"}) as mesh:
        message = batch("A", "B")
        with written(message, batch("A", "B"), batch("C", "D")):
            for _ in range(500):
                receipt = await mesh.release(message)
                assert receipt.message is message
                assert set(charged_units(mesh)) in ({b"A", b"B"}, {b"C", b"D"})


def test_a_suppressed_field_is_not_even_read():
    plan = Policy().plan(TYPES.Report.DESCRIPTOR)
    snapshot = plan.snapshot(TYPES.Report(id="u", owner="o", a=0.5, note="x" * 1000))
    assert sorted(map(str, snapshot)) == ["0.5", "o", "u"]


def test_a_message_id_that_is_replaced_is_not_even_read():
    types = compiled(
        f"""message M {{ bytes id = 1 [(dpmesh.v1.field).message_id = {{}}]; string s = 2 [(dpmesh.v1.field).suppress = {{}}];
        double a = 3 [{NUM} = {{lower: 0 upper: 1 epsilon: 1}}]; }}
        message Bare {{ bytes id = 1 [(dpmesh.v1.field).message_id = {{}}]; }}"""
    )
    assert Policy().plan(types.M.DESCRIPTOR).snapshot(types.M(id=b"x", s="y", a=0.5)) == (0.5,)
    bare = Policy().plan(types.Bare.DESCRIPTOR)
    assert bare.snapshot(types.Bare(id=b"x")) == ()
    assert len(bare.protect(types.Bare(id=b"x"), None).id) == 16


def test_fields_with_the_names_of_python_words_are_read_too():
    types = compiled(
        f"""message M {{ string class = 1 [(dpmesh.v1.field).unit = {{}}]; double from = 2 [{NUM} = {{lower: 0 upper: 1 epsilon: 1}}];
        string source = 3 {PUBLIC}; string target = 4 {PUBLIC}; string value = 5 {PUBLIC}; string alias = 6 {PUBLIC};
        string out = 7 {PUBLIC}; string in0 = 8 {PUBLIC}; }}"""
    )
    plan = Policy().plan(types.M.DESCRIPTOR)
    message = types.M(
        **{"class": "u", "from": 0.5}, source="a", target="b", value="c", alias="d", out="e", in0="f"
    )
    out = plan.protect(message, lambda unit, _: unit * 16)
    assert getattr(out, "class") == ("u" * 16).encode().hex()
    assert (out.source, out.target, out.value, out.alias, out.out, out.in0) == ("a", "b", "c", "d", "e", "f")


@pytest.mark.parametrize("like", [TYPES.Report, TYPES.Batch])
async def test_what_only_looks_like_a_message_is_refused(like):
    class Fake(Message):
        DESCRIPTOR = like.DESCRIPTOR

    async with assembled(settings()) as mesh:
        with pytest.raises(ProtectionError, match="could not be protected"):
            await mesh.release(Fake())
        assert await mesh.ledger.accounts() == []
