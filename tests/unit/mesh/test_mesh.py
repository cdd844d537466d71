"""A mesh: what it checks when it opens, and what it does in each mode."""

import asyncio
import logging
import multiprocessing
import os

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool

import dpmesh
from dpmesh.config import budgets, load
from dpmesh.errors import AnnotationError, BudgetExhaustedError, ConfigError, LedgerError, ProtectionError
from dpmesh.ledger import Ledger, open_store
from dpmesh.policy import Policy
from tests.support.protos import compiled
from tests.support.reports import CAT, NUM, TYPES, report, settings


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
        assert [mesh.snapshot.protection(kind) for kind in (TYPES.Plain, TYPES.Report)] == [False, True]


async def test_nothing_leaves_before_opening_or_after_closing():
    mesh = dpmesh.open(settings())
    with pytest.raises(LedgerError, match="not open"):
        await mesh.release(report())
    async with mesh:
        await mesh.release(report())
    with pytest.raises(LedgerError, match="not open"):
        await mesh.release(report())


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


def parts(**other):
    config = load(settings())
    return {"policy": Policy(), "ledger": Ledger(open_store("memory:"), budgets(config)), **other}


@pytest.mark.parametrize(
    ("part", "text"),
    [
        ({"policy": "policy.yaml"}, "policy: must be a Policy, not a str"),
        ({"policy": None}, "policy: must be a Policy, not a NoneType"),
        ({"ledger": "memory:"}, "ledger: must be a Ledger, not a str"),
        ({"mode": "observed"}, "mode: unknown mode 'observed'; allowed: enforce, observe"),
        ({"mode": None}, "mode: unknown mode None"),
    ],
)
def test_a_mesh_takes_only_its_parts(part, text):
    with pytest.raises(ConfigError, match=text):
        dpmesh.Mesh(**parts(**part))
    with pytest.raises(ConfigError, match="policy: a Report is no policy"):
        dpmesh.open(settings(), policy=report())


async def test_two_meshes_do_not_share_a_ledger_but_one_after_the_other_may_have_it():
    shared = parts()
    first, second = dpmesh.Mesh(**shared), dpmesh.Mesh(**shared)
    for mesh, other in ((first, second), (second, first)):
        async with mesh:
            with pytest.raises(ConfigError, match="give each mesh a Ledger of its own"):
                await other.__aenter__()
            assert (await mesh.release(report())).decision == "released"


async def test_a_mesh_that_fails_to_open_leaves_nothing_open(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4317")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "soon")
    mesh = dpmesh.open(settings())
    with pytest.raises(ValueError, match="soon"):
        await mesh.__aenter__()
    with pytest.raises(LedgerError, match="not open"):
        await mesh.release(report())


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
