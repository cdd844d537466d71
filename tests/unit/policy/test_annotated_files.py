"""What is checked at start: every imported type that may hold something protected, however its file got the annotations."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import FileDescriptor

import dpmesh
from dpmesh.errors import AnnotationError
from dpmesh.policy import Policy, loaded_types
from dpmesh.v1 import privacy_pb2

Load = Callable[[descriptor_pb2.FileDescriptorProto], FileDescriptor]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """Puts a file into a pool of its own and a module that declares it among the imported ones."""
    pool = descriptor_pool.DescriptorPool()
    for known in (descriptor_pb2, privacy_pb2):
        for file in (*known.DESCRIPTOR.dependencies, known.DESCRIPTOR):
            pool.AddSerializedFile(file.serialized_pb)

    def add(file: descriptor_pb2.FileDescriptorProto) -> FileDescriptor:
        pool.AddSerializedFile(file.SerializeToString())
        module = ModuleType(file.name.replace(".", "_"))
        module.DESCRIPTOR = pool.FindFileByName(file.name)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return module.DESCRIPTOR  # type: ignore[attr-defined,no-any-return]

    return add


def file_of(name: str, **more: object) -> descriptor_pb2.FileDescriptorProto:
    return descriptor_pb2.FileDescriptorProto(name=f"{name}.proto", package=name, **more)


def add_field(message: descriptor_pb2.DescriptorProto, name: str) -> descriptor_pb2.FieldOptions:
    field = message.field.add(name=name, number=len(message.field) + 1, type=9, label=1, json_name=name)
    return field.options


def names() -> set[str]:
    return {message.full_name for message in loaded_types.message_types(Policy())}


def edition_2024() -> descriptor_pb2.FileDescriptorProto:
    """What protoc makes of `import option "dpmesh/v1/privacy.proto"`: the import is no dependency."""
    file = file_of("newest", syntax="editions", edition=descriptor_pb2.EDITION_2024)
    file.option_dependency.append("dpmesh/v1/privacy.proto")
    return file


async def test_an_import_of_options_alone_is_checked_at_start(load: Load) -> None:
    file = edition_2024()
    add_field(file.message_type.add(name="M"), "a").Extensions[privacy_pb2.field].numeric.lower = 0
    assert not list(load(file).dependencies)
    assert "newest.M" in names()
    with pytest.raises(AnnotationError, match=r"newest\.M\.a"):
        async with dpmesh.open({"ledger": {"url": "memory:"}}):
            pass


def test_who_imports_such_a_file_is_checked_too(load: Load) -> None:
    file = edition_2024()
    add_field(file.message_type.add(name="M"), "a").Extensions[privacy_pb2.field].suppress.SetInParent()
    load(file)
    user = file_of("user", syntax="proto3", dependency=["newest.proto"])
    held = user.message_type.add(name="N").field.add(name="m", number=1, label=1, json_name="m")
    held.type, held.type_name = 11, ".newest.M"
    load(user)
    assert {"newest.M", "user.N"} <= names()


@pytest.mark.parametrize("where", ["message", "oneof", "nested"])
def test_every_place_of_an_annotation_counts(load: Load, where: str) -> None:
    file = edition_2024()
    message = file.message_type.add(name="M")
    if where == "message":
        add_field(message, "a")
        message.options.Extensions[privacy_pb2.message].unannotated = privacy_pb2.MessageRules.SUPPRESS
    elif where == "oneof":
        for name in ("a", "b"):
            add_field(message, name)
            message.field[-1].oneof_index = 0
        message.oneof_decl.add(name="o").options.Extensions[privacy_pb2.oneof].epsilon = 1
    else:
        inner = message.nested_type.add(name="In")
        add_field(inner, "a").Extensions[privacy_pb2.field].suppress.SetInParent()
    load(file)
    assert "newest.M" in names()


def test_a_type_that_an_annotated_file_extends_is_checked(load: Load) -> None:
    plain = file_of("plain", syntax="proto2")
    plain.message_type.add(name="M").extension_range.add(start=100, end=200)
    load(plain)
    assert "plain.M" not in names()
    extending = file_of("more", syntax="proto2", dependency=["plain.proto", "dpmesh/v1/privacy.proto"])
    field = extending.extension.add(name="x", number=100, type=9, label=1, extendee=".plain.M", json_name="x")
    field.options.Extensions[privacy_pb2.field].suppress.SetInParent()
    load(extending)
    assert "plain.M" in names()


async def test_a_methods_rule_that_sets_nothing_fails_at_start(load: Load) -> None:
    file = file_of("asks", syntax="proto3", dependency=["dpmesh/v1/privacy.proto"])
    file.message_type.add(name="M")
    method = file.service.add(name="S").method.add(name="R", input_type=".asks.M", output_type=".asks.M")
    method.options.Extensions[privacy_pb2.method].SetInParent()
    load(file)
    with pytest.raises(AnnotationError, match=r"/asks\.S/R.*empty-rule"):
        async with dpmesh.open({"ledger": {"url": "memory:"}}):
            pass
