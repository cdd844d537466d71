"""The installed `dpmesh` script in processes of its own, and --reflect against a real grpc.aio server."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sysconfig
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from dpmesh.accounting import AMOUNT
from dpmesh.cli.descriptors import sources
from dpmesh.ledger import Budget, Ledger, open_store

LIB = """syntax = "proto3";
package lib;
import "dpmesh/v1/privacy.proto";
message Reading {
  string id = 1 [(dpmesh.v1.field).unit = {}];
  double heat = 2 [(dpmesh.v1.field).numeric = {lower: 0 upper: 1 epsilon: 1}];
}
"""
SERVICE = """syntax = "proto3";
package acme;
import "lib.proto";
message Ack {}
service Telemetry {
  rpc Push(stream lib.Reading) returns (Ack);
}
"""


class Ran(NamedTuple):
    code: int
    out: str
    err: str


async def run(*arguments: object, cwd: Path) -> Ran:
    """Runs the installed script."""
    script = shutil.which("dpmesh", path=sysconfig.get_path("scripts"))
    assert script is not None
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DPMESH_")}
    process = await asyncio.create_subprocess_exec(
        script,
        *map(str, arguments),
        cwd=cwd,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return Ran(process.returncode, out.decode(), err.decode())


@pytest.fixture
def protos(tmp_path: Path) -> Path:
    (tmp_path / "lib.proto").write_text(LIB)
    (tmp_path / "service.proto").write_text(SERVICE)
    return tmp_path


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., object]]:
    """Starts grpc.aio servers; gives their addresses."""
    servers: list[grpc.aio.Server] = []

    async def start(directory: Path | None, *, version: str = "v1alpha") -> str:
        server = grpc.aio.server()
        health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
        if directory is not None:
            pool = sources.from_protos([directory / "service.proto"], []).pool
            pool.AddSerializedFile(health_pb2.DESCRIPTOR.serialized_pb)
            pool.AddSerializedFile(reflection_pb2.DESCRIPTOR.serialized_pb)
            names = ["acme.Telemetry", health.SERVICE_NAME, reflection.SERVICE_NAME]
            if version == "v1alpha":
                reflection.enable_server_reflection(names, server, pool=pool)
            else:
                server.add_generic_rpc_handlers(
                    (_reflection_v1(reflection.aio.ReflectionServicer(names, pool)),)
                )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        await server.stop(None)


def _reflection_v1(servicer: reflection.aio.ReflectionServicer) -> grpc.GenericRpcHandler:
    """The same service under the name of its later version, which grpcio-reflection does not offer."""
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(
        "grpc.reflection.v1.ServerReflection", {"ServerReflectionInfo": handler}
    )


async def test_check_and_its_exit_codes(protos: Path) -> None:
    assert await run("check", "service.proto", "lib.proto", cwd=protos) == (
        0,
        "No findings in 2 message types.\n",
        "",
    )
    (protos / "lib.proto").write_text(LIB.replace("epsilon: 1", "epsilon: nan"))
    ran = await run("check", "lib.proto", "--format", "github", cwd=protos)
    assert (ran.code, ran.err) == (1, "")
    assert ran.out.startswith("::error file=lib.proto,line=6,col=3,title=dpmesh epsilon::lib.Reading.heat")
    ran = await run("check", "nowhere.proto", cwd=protos)
    assert ran == (2, "", "dpmesh: nowhere.proto: no such file\n")


async def test_protos_prints_what_protoc_needs(protos: Path) -> None:
    ran = await run("protos", cwd=protos)
    assert ran.code == 0
    assert (Path(ran.out.strip()) / "dpmesh/v1/privacy.proto").is_file()


@pytest.mark.parametrize("version", ["v1alpha", "v1"])
async def test_check_and_plan_a_live_server(protos: Path, serve, version: str) -> None:
    address = await serve(protos, version=version)
    ran = await run("check", "--reflect", address, cwd=protos)
    # The message of the service's import is there; those of health and reflection are not.
    assert ran == (0, "No findings in 2 message types.\n", "")
    document = json.loads((await run("plan", "--reflect", address, "--json", cwd=protos)).out)
    assert [rpc["method"] for rpc in document["rpcs"]] == ["/acme.Telemetry/Push"]
    reading = next(entry for entry in document["messages"] if entry["message"] == "lib.Reading")
    assert [field["path"] for field in reading["fields"]] == ["id", "heat"]
    assert reading["epsilon"] == 1.0


async def test_findings_about_a_live_server_name_the_file(protos: Path, serve) -> None:
    (protos / "lib.proto").write_text(LIB.replace("epsilon: 1", "epsilon: -1"))
    address = await serve(protos)
    ran = await run("check", "--reflect", address, cwd=protos)
    assert ran.code == 1
    assert ran.out.startswith("lib.proto: error [epsilon] lib.Reading.heat: ")


async def test_plan_a_live_server_against_the_file_that_shall_replace_it(protos: Path, serve) -> None:
    address = await serve(protos)
    (protos / "policy.yaml").write_text("fields: {lib.Reading.heat: {suppress: {}}}\n")
    ran = await run("plan", "--reflect", address, "--against", "policy.yaml", cwd=protos)
    assert ran.code == 0
    assert "lib.Reading: ε 0, ρ 0 -> ε 1, ρ 0.4621" in ran.out


async def test_a_server_without_reflection_says_so(protos: Path, serve) -> None:
    address = await serve(None)
    ran = await run("check", "--reflect", address, cwd=protos)
    assert ran == (2, "", f"dpmesh: {address}: does not offer server reflection\n")


async def test_the_budget_of_a_ledger_in_use(tmp_path: Path) -> None:
    (tmp_path / "dpmesh.toml").write_text(f'[ledger]\nurl = "sqlite:///{tmp_path}/ledger.db"\n')
    ledger = Ledger(open_store(f"sqlite:///{tmp_path}/ledger.db"), [Budget("lifetime", window=None)])
    await ledger.open()
    try:
        await ledger.charge([(0, b"N10156", AMOUNT // 10)])
        ran = await run("budget", "show", "N10156", "--json", cwd=tmp_path)
        assert (ran.code, ran.err) == (0, "")
        assert [entry["spent"]["value"] for entry in json.loads(ran.out)] == [0.1]
        await ledger.charge([(0, b"N10156", AMOUNT // 10)])
        ran = await run("budget", "list", cwd=tmp_path)
        assert (ran.code, ran.err) == (0, "")
        assert "ρ 0.2 (ε" in ran.out
    finally:
        await ledger.close()


async def test_a_reader_that_stops_early_is_no_error(protos: Path) -> None:
    body = "".join(f"  string f{number} = {number};\n" for number in range(10, 1000))
    (protos / "lib.proto").write_text(LIB.replace("}\n", body + "}\n"))
    script = shutil.which("dpmesh", path=sysconfig.get_path("scripts"))
    command = f"'{script}' check lib.proto | head -n 1"
    process = await asyncio.create_subprocess_shell(
        command, cwd=protos, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert (len(out.splitlines()), err) == (1, b"")
