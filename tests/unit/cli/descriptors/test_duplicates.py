"""Annotations that are set twice: compilers keep the last, so `check` and `plan` look into the source info."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from dpmesh.cli.descriptors import duplicates, protoc, sources
from dpmesh.policy import Policy
from dpmesh.v1 import privacy_pb2

NUMERIC = "(dpmesh.v1.field).numeric = {lower: 0 upper: 1 epsilon: 1}"
PUBLIC = "(dpmesh.v1.field).public = {}"


def proto(body: str) -> str:
    return (
        'syntax = "proto3";\npackage acme;\nimport "dpmesh/v1/privacy.proto";\n'
        f'import "google/protobuf/descriptor.proto";\n{body}\n'
    )


def field(*options: str) -> str:
    return proto(f"message M {{\n  double a = 1 [\n    {f',{chr(10)}    '.join(options)}];\n}}")


TWICE = {
    "two kinds": (field(NUMERIC, PUBLIC), "acme.M.a", 8),
    "two kinds, the protected one last": (field(PUBLIC, NUMERIC), "acme.M.a", 8),
    "kinds in part": (field("(dpmesh.v1.field).numeric.lower = 1", "(dpmesh.v1.field).vector.dimension = 1"), "acme.M.a", 8),
    "between other options": (field(NUMERIC, "deprecated = true", PUBLIC), "acme.M.a", 9),
    "the whole, then a kind": (field("(dpmesh.v1.field) = {suppress {}}", PUBLIC), "acme.M.a", 8),
    "another spelling": (field(NUMERIC, "(.dpmesh.v1.field).public = {}"), "acme.M.a", 8),
    "two norms": (
        field("(dpmesh.v1.field).vector.l1_norm = 1", "(dpmesh.v1.field).vector.l2_norm = 1"),
        "acme.M.a",
        8,
    ),
    "a norm in a literal": (
        field("(dpmesh.v1.field).vector = {l1_norm: 1}", "(dpmesh.v1.field).vector.l2_norm = 1"),
        "acme.M.a",
        8,
    ),
    "nested": (proto(f"message M {{ message N {{ oneof o {{\n double a = 1 [{NUMERIC},\n {PUBLIC}]; }} }} }}"), "acme.M.N.a", 7),
    "an extension": (
        proto(f"extend google.protobuf.FileOptions {{\n double x = 51234 [{NUMERIC},\n {PUBLIC}]; }}"),
        "acme.x",
        7,
    ),
    "an extension in a message": (
        proto(f"message M {{ extend google.protobuf.FileOptions {{\n double x = 51234 [{NUMERIC},\n {PUBLIC}]; }} }}"),
        "acme.M.x",
        7,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TWICE)
def test_check_names_the_second_with_its_place(dpmesh, write, case: str) -> None:
    text, element, line = TWICE[case]
    ran = dpmesh("check", write("m.proto", text))
    assert ran.code == 1
    found = re.findall(r"^m\.proto:(\d+):(\d+): error \[kind-duplicate\] (\S+):", ran.out, re.MULTILINE)
    assert [(int(number), name) for number, _, name in found] == [(line, element)]
    written = text.splitlines()[line - 1]
    assert written[int(found[0][1]) - 1 :].startswith(("(dpmesh", "(.dpmesh"))


@pytest.mark.parametrize("case", TWICE)
def test_plan_refuses_them(dpmesh, write, case: str) -> None:
    text, element, line = TWICE[case]
    ran = dpmesh("plan", write("m.proto", text))
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"dpmesh: m.proto:{line}:")
    assert f"{element}: sets" in ran.err
    assert "[kind-duplicate]" in ran.err


def test_a_descriptor_set_with_source_info_shows_them(dpmesh, write) -> None:
    compiled = protoc.compile_files([write("m.proto", field(NUMERIC, PUBLIC))], [])
    Path("with.binpb").write_bytes(compiled.descriptors.SerializeToString())
    ran = dpmesh("check", "--descriptor-set", "with.binpb")
    assert ran.code == 1
    assert ran.out.startswith(
        "m.proto:8:5: error [kind-duplicate] acme.M.a: sets public and, on line 7, numeric;"
    )
    assert dpmesh("plan", "--descriptor-set", "with.binpb").code == 2


def test_an_imported_file_is_looked_at_too(dpmesh, write) -> None:
    write("m.proto", field(NUMERIC, PUBLIC))
    user = write(
        "user.proto",
        proto('import "m.proto";\nmessage User { M m = 1; }')
        .replace("acme", "user")
        .replace("{ M", "{ acme.M"),
    )
    ran = dpmesh("check", user)
    assert ran.code == 1
    assert "m.proto:8:5: error [kind-duplicate] acme.M.a" in ran.out


SINGLE = {
    "kind and length": "repeated double a = 1 [" + NUMERIC + ", (dpmesh.v1.field).max_items = 2];",
    "in parts": "double a = 1 [(dpmesh.v1.field).numeric.lower = 0, (dpmesh.v1.field).numeric.upper = 1, "
    "(dpmesh.v1.field).numeric.epsilon = 1];",
    "literal and part": "double a = 1 [(dpmesh.v1.field).numeric = {lower: 0 upper: 1}, "
    "(dpmesh.v1.field).numeric.epsilon = 1];",
    "a list": 'string a = 1 [(dpmesh.v1.field).categorical.domain = "a", '
    '(dpmesh.v1.field).categorical.domain = "b", (dpmesh.v1.field).categorical.epsilon = 1];',
    "message options": "option (dpmesh.v1.message) = {epsilon: 1}; option (dpmesh.v1.message).unannotated = REJECT; "
    'option (dpmesh.v1.message).labels = "a"; option (dpmesh.v1.message).labels = "b"; '
    "double a = 1 [(dpmesh.v1.field).numeric = {lower: 0 upper: 1}];",
    "fields beside each other": f"double a = 1 [{NUMERIC}]; double b = 2 [{PUBLIC}];",
}  # fmt: skip


@pytest.mark.parametrize("compiler", ["protoc", "buf"])
@pytest.mark.parametrize("case", SINGLE)
def test_what_is_set_once_is_left_alone(
    write, monkeypatch: pytest.MonkeyPatch, case: str, compiler: str
) -> None:
    if compiler == "buf":
        _use_buf(monkeypatch)
    loaded = sources.from_protos([write("m.proto", proto(f"message M {{ {SINGLE[case]} }}"))], [])
    assert loaded.duplicates == ()
    assert Policy().diagnostics(loaded.pool.FindMessageTypeByName("acme.M")) == []


def _use_buf(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util
    import shutil
    import sys

    buf = shutil.which("buf", path=str(Path(sys.executable).parent)) or shutil.which("buf")
    if buf is None:
        pytest.skip("needs buf (the dependency group `lint`)")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "grpc_tools" else find(name)
    )
    monkeypatch.setattr(shutil, "which", lambda name: buf if name == "buf" else None)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("option (dpmesh.v1.message) = {epsilon: 1}; option (dpmesh.v1.message).epsilon = 2;", "already set"),
        ("option (dpmesh.v1.message).epsilon = 1; option (dpmesh.v1.message).epsilon = 2;", "already set"),
        (
            "oneof o { option (dpmesh.v1.oneof).public = true; option (dpmesh.v1.oneof).public = false; int32 a = 1; }",
            "already set",
        ),
        (f"double a = 1 [{NUMERIC}, {NUMERIC}];", "already set"),
        ("double a = 1 [(dpmesh.v1.field) = {public {} suppress {}}];", "another member of oneof"),
    ],
)
def test_the_compiler_refuses_what_else_is_set_twice(dpmesh, write, body: str, words: str) -> None:
    ran = dpmesh("check", write("m.proto", proto(f"message M {{ {body} }}")))
    assert ran.code == 1
    assert "error [syntax]" in ran.out
    assert words in ran.out


def test_compilers_that_would_let_it_pass_are_not_relied_on() -> None:
    """The source info of a compiler that takes the last of two equal settings."""
    file = FileDescriptorProto(name="m.proto", package="acme")
    method = file.service.add(name="S").method.add(name="R")
    method.options.Extensions[privacy_pb2.method].require = False
    for line in (3, 4):
        file.source_code_info.location.add(path=[6, 0, 2, 0, 4, 52830, 1], span=[line, 4, 40])
    (found,) = duplicates.find(file, "m.proto")
    assert (str(found[0]), found[1].element) == ("m.proto:5:5", "/acme.S/R")


@pytest.mark.parametrize(
    "path",
    [[], [4], [99, 1], [4, 0, 2, 0, 8], [4, 0, 2, 0, 8, 52830, 77, 1], [8, 52830], [5, 0, 3, 52830, 1]],
)
def test_any_source_info_can_be_read(path: list[int]) -> None:
    file = FileDescriptorProto(name="m.proto")
    file.source_code_info.location.add(path=path, span=[0, 0, 1])
    assert list(duplicates.find(file, "m.proto")) == []
    sources.load(FileDescriptorSet(file=[file]).file, ["m.proto"], {})


def test_source_info_with_broken_spans_can_be_read() -> None:
    file = FileDescriptorProto(name="m.proto")
    for span in ([], [1], [1, 2], [1, 2, 3, 4, 5], [-1, -1, -1]):
        file.source_code_info.location.add(path=[4, 0, 2, 0, 8, 52830, 9], span=span)
        file.source_code_info.location.add(path=[4, 0, 2, 0, 8, 52830, 10], span=span)
    file.message_type.add(name="M").field.add(name="a", number=1, type=9, label=1)
    assert all(problem.element == "M.a" for _, problem in duplicates.find(file, "m.proto"))
    sources.load([file], ["m.proto"], {})
