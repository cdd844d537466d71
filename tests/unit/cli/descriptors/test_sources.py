"""Loading descriptors: include paths, compilers, descriptor sets, reflection's answers."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

import dpmesh
from dpmesh.cli.console import InputError
from dpmesh.cli.descriptors import include, protoc, source_locations, sources

A = 'syntax = "proto3";\npackage acme.v1;\nimport "acme/v1/b.proto";\nmessage A { B b = 1; message In { int32 n = 1; } }\n'
B = 'syntax = "proto3";\npackage acme.v1;\nmessage B { map<string, int32> m = 1; }\n'


def _names(loaded: sources.Sources) -> list[str]:
    return [message.full_name for message in loaded.messages()]


@pytest.fixture
def tree(write) -> Path:
    write("protos/acme/v1/b.proto", B)
    return write("protos/acme/v1/a.proto", A)


def test_the_root_is_guessed_from_the_package(tree: Path) -> None:
    loaded = sources.from_protos([tree], [])
    assert [file.name for file in loaded.files] == ["acme/v1/a.proto"]
    # Nested types are there, those of imports and map entries are not.
    assert _names(loaded) == ["acme.v1.A", "acme.v1.A.In"]
    assert str(loaded.source_locations["acme.v1.A.In.n"]) == "protos/acme/v1/a.proto:4:35"
    assert str(loaded.source_locations["acme.v1.B.m"]) == "protos/acme/v1/b.proto:3:13"


def test_imports_from_the_working_directory(write) -> None:
    write("some/where/b.proto", B)
    user = write("some/where/a.proto", A.replace("acme/v1/b", "some/where/b"))
    assert "acme.v1.A" in _names(sources.from_protos([user], []))


def test_given_folders_are_the_only_ones(tree: Path) -> None:
    assert "acme.v1.A" in _names(sources.from_protos([tree], [Path("protos")]))
    with pytest.raises(protoc.CompileError, match="acme/v1/b.proto"):
        sources.from_protos([tree], [Path("protos/acme/v1")])


def test_absolute_and_relative_spellings_mix(tree: Path) -> None:
    loaded = sources.from_protos([tree.absolute()], [Path("protos/../protos")])
    assert str(loaded.source_locations["acme.v1.A"]).startswith(str(tree.absolute()))


def test_two_files_that_import_each_other_are_each_there_once(tree: Path) -> None:
    loaded = sources.from_protos([tree, Path("protos/acme/v1/b.proto"), tree], [])
    assert _names(loaded) == ["acme.v1.A", "acme.v1.A.In", "acme.v1.B"]


def test_googles_protos_are_on_the_include_path(write) -> None:
    imports = ("google/protobuf/timestamp", "google/rpc/status", "google/api/annotations", "dpmesh/v1/policy")
    lines = "".join(f'import "{name}.proto";\n' for name in imports)
    file = write("a.proto", f'syntax = "proto3";\n{lines}message A {{ google.rpc.Status s = 1; }}\n')
    assert _names(sources.from_protos([file], [])) == ["A"]


def test_the_first_complaint_is_the_error(write) -> None:
    bad = write("bad.proto", 'syntax = "proto3";\nmessage A { strin x = 1; }\nmessage A {}\n')
    with pytest.raises(protoc.CompileError) as caught:
        sources.from_protos([bad], [])
    assert str(caught.value).startswith("bad.proto:")
    assert len(caught.value.findings) == 2


@pytest.mark.parametrize("compiler", ["protoc", "buf"])
def test_without_the_extra_other_compilers_do(
    compiler: str, tree: Path, write, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = _other_compiler(compiler, write)
    _hide_grpc_tools(monkeypatch)
    monkeypatch.setattr(shutil, "which", lambda name: command if name == compiler else None)
    annotated = write(
        "protos/acme/v1/c.proto",
        'syntax = "proto3";\npackage acme.v1;\nimport "dpmesh/v1/privacy.proto";\n'
        'import "google/protobuf/timestamp.proto";\nimport "acme/v1/a.proto";\n'
        "message C { google.protobuf.Timestamp t = 1; A a = 2 [(dpmesh.v1.field).suppress = {}]; }\n",
    )
    loaded = sources.from_protos([annotated], [])
    assert _names(loaded) == ["acme.v1.C"]
    assert str(loaded.source_locations["acme.v1.C.a"]) == "protos/acme/v1/c.proto:6:46"
    broken = write(
        "protos/acme/v1/d.proto", 'syntax = "proto3";\npackage acme.v1;\nmessage D { In x = 1; }\n'
    )
    with pytest.raises(protoc.CompileError) as caught:
        sources.from_protos([broken], [])
    assert str(caught.value.findings[0].location) == "protos/acme/v1/d.proto:3:13"


def _other_compiler(name: str, write) -> str:
    if name == "protoc":
        script = write("bin/protoc", f'#!/bin/sh\nexec "{sys.executable}" -m grpc_tools.protoc "$@"\n')
        script.chmod(0o755)
        return str(script.absolute())
    buf = shutil.which("buf", path=str(Path(sys.executable).parent)) or shutil.which("buf")
    if buf is None:
        pytest.skip("needs buf (the dependency group `lint`)")
    return buf


def _hide_grpc_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "grpc_tools" else find(name)
    )


def test_without_any_compiler_the_extra_is_named(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _hide_grpc_tools(monkeypatch)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InputError, match=r"pip install '.\[tools\]'"):
        sources.from_protos([tree], [])


def test_a_descriptor_set_may_lack_what_comes_with_protobuf_and_dpmesh(write) -> None:
    file = write(
        "a.proto",
        'syntax = "proto3";\nimport "dpmesh/v1/privacy.proto";\nimport "google/protobuf/any.proto";\n'
        "message A { google.protobuf.Any any = 1 [(dpmesh.v1.field).public = {}]; }\n",
    )
    compiled = protoc.compile_files([file], [])
    alone = [entry for entry in compiled.descriptors.file if entry.name == "a.proto"]
    Path("alone.binpb").write_bytes(FileDescriptorSet(file=alone).SerializeToString())
    assert _names(sources.from_descriptor_sets([Path("alone.binpb")])) == ["A"]


def test_a_descriptor_set_without_its_imports_says_so(tree: Path) -> None:
    compiled = protoc.compile_files([tree], [])
    alone = [entry for entry in compiled.descriptors.file if entry.name == "acme/v1/a.proto"]
    Path("alone.binpb").write_bytes(FileDescriptorSet(file=alone).SerializeToString())
    with pytest.raises(InputError, match=r"acme/v1/b.proto: imported, but missing.*--include_imports"):
        sources.from_descriptor_sets([Path("alone.binpb")])


def test_files_of_a_set_come_in_any_order_and_from_several_sets(tree: Path) -> None:
    files = {entry.name: entry for entry in protoc.compile_files([tree], []).descriptors.file}
    for name in ("a", "b"):
        one = FileDescriptorSet(file=[files[f"acme/v1/{name}.proto"]])
        Path(f"{name}.binpb").write_bytes(one.SerializeToString())
    loaded = sources.from_descriptor_sets([Path("a.binpb"), Path("b.binpb")])
    assert _names(loaded) == ["acme.v1.A", "acme.v1.A.In", "acme.v1.B"]


def test_a_contradictory_descriptor_is_an_error(tree: Path) -> None:
    files = protoc.compile_files([tree], []).descriptors
    files.file[-1].message_type[0].field[0].type_name = ".acme.v1.Nothing"
    Path("bad.binpb").write_bytes(files.SerializeToString())
    with pytest.raises(InputError, match="not a valid descriptor"):
        sources.from_descriptor_sets([Path("bad.binpb")])


def test_dpmeshs_protos_in_a_checkout_and_in_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (include.dpmesh_protos() / "dpmesh/v1/privacy.proto").is_file()
    package = tmp_path / "site-packages/dpmesh"
    (package / "protos/dpmesh/v1").mkdir(parents=True)
    (package / "protos/dpmesh/v1/privacy.proto").touch()
    monkeypatch.setattr(dpmesh, "__file__", str(package / "__init__.py"))
    assert include.dpmesh_protos() == package / "protos"


@pytest.mark.parametrize(
    ("path", "package", "root"),
    [
        ("x/acme/v1/a.proto", "acme.v1", "x"),
        ("acme/a.proto", "acme", "."),
        ("x/acme/a.proto", "acme.v1", "x/acme"),
        ("a.proto", "acme", "."),
    ],
)
def test_root_of(write, path: str, package: str, root: str) -> None:
    file = write(path, f'// A comment.\nsyntax = "proto3";\n  package {package} ;\n')
    assert include.root_of(file) == Path(root).absolute()


def test_places_of_overlays_survive_odd_files(write) -> None:
    assert source_locations.of_overlays(write("empty.yaml", "")) == {}
    odd = write("odd.yaml", "version: '1'\nfields:\nmessages: {a.B: {}}\n")
    assert source_locations.of_overlays(odd) == {"a.B": source_locations.SourceLocation("odd.yaml", 3, 12)}


@pytest.mark.parametrize("implementation", ["upb", "python"])
def test_a_contradictory_descriptor_is_one_line_in_every_protobuf(tree: Path, implementation: str) -> None:
    files = protoc.compile_files([tree], []).descriptors
    field = files.file[-1].message_type[0].field[0]
    broken = {}
    for name, (type_name, number) in {"type": (".acme.v1.Nothing", 1), "kind": (".acme.v1.A", 14)}.items():
        field.type_name, field.type = type_name, 11 if number == 1 else number
        broken[name] = Path(f"{name}.binpb")
        broken[name].write_bytes(files.SerializeToString())
    broken["name"] = Path("name.binpb")
    broken["name"].write_bytes(files.SerializeToString().replace(b"acme.v1", b"acm\xff.v1"))
    environment = {**os.environ, "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": implementation}
    for path in broken.values():
        done = subprocess.run(
            [sys.executable, "-c", "from dpmesh.cli import main; main()", "check", "--descriptor-set", path],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert ".proto: not a valid descriptor" in done.stderr or "is not a descriptor set" in done.stderr
        assert len(done.stderr.splitlines()) == 1


# Descriptor sets of strangers.


def _file(name: str, *imports: str) -> FileDescriptorProto:
    return FileDescriptorProto(name=name, syntax="proto3", dependency=imports)


def _set(*files: FileDescriptorProto) -> list[Path]:
    Path("set.binpb").write_bytes(FileDescriptorSet(file=files).SerializeToString())
    return [Path("set.binpb")]


@pytest.mark.parametrize("length", [1, 3000])
def test_a_ring_of_imports_is_an_error(workplace: Path, length: int) -> None:
    ring = [_file(f"{number}.proto", f"{(number + 1) % length}.proto") for number in range(length)]
    with pytest.raises(InputError, match="imports itself"):
        sources.from_descriptor_sets(_set(*ring))


def test_a_chain_of_thousands_of_imports_is_none(workplace: Path) -> None:
    chain = [_file(f"{number}.proto", f"{number + 1}.proto") for number in range(3000)]
    assert len(sources.from_descriptor_sets(_set(*chain, _file("3000.proto"))).files) == 3001


def test_each_file_comes_after_all_that_it_imports(workplace: Path) -> None:
    """Also where two files import a third, and one of them the other."""
    files = [
        _file("a.proto", "b.proto", "c.proto", "d.proto"),
        _file("b.proto", "c.proto"),
        _file("c.proto", "d.proto"),
        _file("d.proto"),
    ]
    for order in (files, files[::-1], files[2:] + files[:2]):
        assert len(sources.from_descriptor_sets(_set(*order)).files) == 4


def test_a_set_that_is_cut_off_is_an_error(tree: Path) -> None:
    whole = protoc.compile_files([tree], []).descriptors.SerializeToString()
    for end in range(1, len(whole), 7):
        Path("cut.binpb").write_bytes(whole[:end])
        try:
            sources.from_descriptor_sets([Path("cut.binpb")])
        except InputError as error:
            assert "cut.binpb" in str(error) or "imported, but missing" in str(error)  # noqa: PT017


def test_a_set_that_does_not_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MOST_BYTES", 1_000_000)
    with pytest.raises(InputError, match="/dev/zero: has more than"):
        sources.from_descriptor_sets([Path("/dev/zero")])


def test_installed_files_take_the_place_of_those_in_a_set(workplace: Path) -> None:
    own = _file("dpmesh/v1/privacy.proto")
    own.package = "evil"
    loaded = sources.from_descriptor_sets(_set(_file("a.proto", own.name), own))
    assert [file.name for file in loaded.files] == ["a.proto"]
    assert loaded.pool.FindExtensionByName("dpmesh.v1.field")


def test_names_need_not_be_ascii(write) -> None:
    assert _names(sources.from_protos([write("größe.proto", 'syntax = "proto3";\nmessage A {}\n')], [])) == [
        "A"
    ]
