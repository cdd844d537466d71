"""Which types are looked at, at start."""

import sys
import types as modules

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool

import dpmesh
from dpmesh.errors import AnnotationError
from dpmesh.policy import Policy, loaded_types
from dpmesh.policy.overlay_file import parse
from dpmesh.v1 import privacy_pb2


def plain_file(monkeypatch, name, build, *imports):
    """A loaded file without annotations."""
    file = descriptor_pb2.FileDescriptorProto(name=f"{name}.proto", package=name, syntax="proto3")
    file.dependency.extend(imports)
    build(file)
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
    module = modules.ModuleType(f"{name}_pb2")
    module.DESCRIPTOR = descriptor_pool.Default().FindFileByName(f"{name}.proto")
    monkeypatch.setitem(sys.modules, f"{name}_pb2", module)


def message(file, name, *fields):
    found = file.message_type.add(name=name)
    for number, (field, held) in enumerate(fields, start=1):
        kind = 11 if held else 9
        found.field.add(name=field, number=number, label=1, type=kind, type_name=held or None)


async def test_a_type_that_holds_itself_is_refused_at_start_wherever_it_stands(monkeypatch):
    """As etcd's TxnRequest: its file has no annotations, and an overlay names another type, in another file."""

    def puts(file):
        message(file, "Put", ("value", ""))

    def transactions(file):
        message(file, "Txn", ("op", ".holding_itself.Op"))
        message(file, "Op", ("put", ".held_by_it.Put"), ("txn", ".holding_itself.Txn"))
        message(file, "Apart", ("self", ".holding_itself.Apart"))

    plain_file(monkeypatch, "held_by_it", puts)
    plain_file(monkeypatch, "holding_itself", transactions, "held_by_it.proto")
    config = {"ledger": {"url": "memory:"}}
    async with dpmesh.open(config):
        pass
    policy = parse({"fields": {"held_by_it.Put.value": {"suppress": {}}}}, "test")
    with pytest.raises(AnnotationError, match=r"holding_itself\.(Op\.txn|Txn\.op): .*\[recursive\] Fix:"):
        async with dpmesh.open(config, policy=policy):
            pass
    policy.fields["holding_itself.Op.txn"].suppress.SetInParent()
    async with dpmesh.open(config, policy=policy):
        pass
    found = {descriptor.full_name for descriptor in loaded_types.message_types(Policy(policy))}
    assert {"held_by_it.Put", "holding_itself.Txn", "holding_itself.Op"} <= found


def test_a_chain_of_many_imports_is_followed_to_its_end(monkeypatch):
    def first(file):
        message(file, "M", ("value", ""))

    plain_file(monkeypatch, "chain0", first)
    for number in range(1, 1500):
        used = f"chain{number - 1}"
        plain_file(
            monkeypatch,
            f"chain{number}",
            lambda file, used=used: message(file, "M", ("m", f".{used}.M")),
            f"{used}.proto",
        )
    policy = Policy(parse({"fields": {"chain0.M.value": {"suppress": {}}}}, "test"))
    found = {descriptor.full_name for descriptor in loaded_types.message_types(policy)}
    assert "chain1499.M" in found


async def test_a_type_whose_extension_has_a_rule_is_looked_at_in_its_own_file(monkeypatch):
    def extended(file):
        file.syntax = "proto2"
        message(file, "Txn", ("again", ".extended_by_another.Txn"))
        file.message_type[0].extension_range.add(start=100, end=200)

    def extending(file):
        file.syntax = "proto2"
        rule = file.extension.add(name="x", number=100, label=1, type=9, extendee=".extended_by_another.Txn")
        rule.options.Extensions[privacy_pb2.field].suppress.SetInParent()

    plain_file(monkeypatch, "extended_by_another", extended)
    config = {"ledger": {"url": "memory:"}}
    async with dpmesh.open(config):
        pass
    plain_file(monkeypatch, "extending", extending, "extended_by_another.proto", "dpmesh/v1/privacy.proto")
    with pytest.raises(AnnotationError, match=r"extended_by_another\.Txn\.again: .*\[recursive\]"):
        async with dpmesh.open(config):
            pass
