"""Protos for tests, compiled on the spot: the annotated text stands beside the test that is about it."""

from __future__ import annotations

import itertools
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.message_factory import GetMessageClass
from grpc_tools import protoc

from dpmesh.v1 import privacy_pb2, report_pb2  # noqa: F401 - the default pool has to know them

ROOT = Path(__file__).resolve().parents[2]
WELL_KNOWN = Path(protoc.__file__).parent / "_proto"
_numbers = itertools.count()


@cache
def compiled(body: str, syntax: str = "proto3") -> SimpleNamespace:
    """Compiles message definitions in a package of their own.

    Args:
        body: Definitions that may use (dpmesh.v1.field) and the wrappers.
        syntax: "proto2" or "proto3".

    Returns:
        The message classes by name, and `package`.
    """
    package = f"t{next(_numbers)}"
    text = (
        f'syntax = "{syntax}";\npackage {package};\nimport "dpmesh/v1/privacy.proto";\n'
        f'import "google/protobuf/wrappers.proto";\nimport "google/protobuf/any.proto";\n'
        f'import "dpmesh/v1/report.proto";\n'
        f'import "google/protobuf/timestamp.proto";\nimport "google/protobuf/duration.proto";\n{body}\n'
    )
    with TemporaryDirectory() as folder:
        (Path(folder) / f"{package}.proto").write_text(text)
        out = Path(folder) / "set.pb"
        command = [
            "protoc",
            f"-I{folder}",
            f"-I{ROOT / 'protos'}",
            f"-I{WELL_KNOWN}",
            f"-o{out}",
            f"{package}.proto",
        ]
        assert protoc.main(command) == 0, text
        files = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())
    # Imported files are in the default pool already, through their _pb2 modules.
    from google.protobuf import any_pb2, duration_pb2, timestamp_pb2, wrappers_pb2  # noqa: F401

    pool = descriptor_pool.Default()
    pool.AddSerializedFile(files.file[0].SerializeToString())
    file = pool.FindFileByName(f"{package}.proto")
    classes = {name: GetMessageClass(found) for name, found in file.message_types_by_name.items()}
    return SimpleNamespace(package=package, **classes)
