"""`dpmesh policy serve` as a process, and `dpmesh policy status` on what it counted."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import signal
import sys

import pytest

from dpmesh import cli
from dpmesh.identity.ca.folder import create_folder
from dpmesh.identity.rotation.rotating_identity import RotatingIdentity
from dpmesh.identity.sources.files import FileSource
from dpmesh.rollout.push import published
from dpmesh.rollout.push.reports import outcome_pseudonym
from dpmesh.v1 import rollout_pb2_grpc as rpc
from dpmesh.v1.rollout_pb2 import ReportOutcomeRequest
from dpmesh_grpc.rotation.channel import rotating_channel
from tests.support.pushed_repositories import PushedRepository


@pytest.fixture
def fleet(tmp_path, capsys):
    """A folder with an authority, the server's identity and a repository."""
    import time

    create_folder(tmp_path / "ca", "mesh.example", now=time.time(), password=None)
    for name in ("server", "device"):
        options = ["--server"] if name == "server" else []
        assert (
            cli.run(["identity", "issue", str(tmp_path / "ca"), "--out", str(tmp_path / name), *options]) == 0
        )
    capsys.readouterr()
    return tmp_path


def dpmesh(*words):
    assert cli.run(["policy", *map(str, words)]) == 0


def officers(folder) -> bytes:
    """Publishes a policy for all and then one for a part of the fleet, as officers do; returns the second's digest."""
    for name in ("root", "officer", "online", "rings"):
        dpmesh("key", folder / name)
    repository = "--repo", folder / "repository"
    public = (
        "--officer",
        folder / "officer.pub",
        "--root",
        folder / "root.pub",
        "--root-key",
        folder / "root",
        "--online",
        folder / "online.pub",
        "--rings",
        folder / "rings.pub",
    )
    dpmesh("init", folder / "repository", "--fleet", "cars", *public)
    for epoch, more in (
        (4, ("--rings-key", folder / "rings")),
        (5, ("--share", 0.05, "--rings-key", folder / "rings")),
    ):
        (folder / "policy.json").write_text(json.dumps({"epoch": epoch}))
        dpmesh("sign", folder / "policy.json", *repository, "--key", folder / "officer")
        dpmesh("publish", *repository, "--key", folder / "online", *more)
    return hashlib.sha256((folder / "policy.json").read_bytes()).digest()


async def test_serve_status_and_halt(fleet, capsys):
    digest = await asyncio.to_thread(officers, fleet)
    capsys.readouterr()
    store = f"sqlite:///{fleet}/rollout.db"
    halt = f"{sys.executable} -c 'from dpmesh.cli import main; main()' policy halt --repo {fleet}/repository"
    halt += f" --key {fleet}/online --rings-key {fleet}/rings"
    command = ["serve", "--repo", fleet / "repository", "--identity", fleet / "server"]
    command += ["--listen", "127.0.0.1:0", "--store", store, "--on-halt", halt]
    arguments = [sys.executable, "-c", "from dpmesh.cli import main; main()", "policy", *map(str, command)]
    process = await asyncio.create_subprocess_exec(*arguments, stdout=asyncio.subprocess.PIPE)
    try:
        port = int(re.search(r":(\d+)$", (await process.stdout.readline()).decode().strip())[1])
        device = fleet / "device"
        source = FileSource(device / "certificate.pem", device / "key.pem", device / "trust_bundle.pem")
        async with (
            RotatingIdentity(source) as identity,
            rotating_channel(f"127.0.0.1:{port}", identity) as channel,
        ):
            stub = rpc.RolloutServiceStub(channel)
            for n in range(30):
                taken = n >= 20
                await stub.ReportOutcome(
                    ReportOutcomeRequest(
                        epoch=5,
                        digest=digest,
                        pseudonym=outcome_pseudonym(bytes([n]), 5),
                        taken=taken,
                        reason="" if taken else "acme.Report.a: bad",
                    )
                )
        async with asyncio.timeout(60):
            while published.read(fleet / "repository").share:
                await asyncio.sleep(0.05)
    finally:
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
    assert await asyncio.to_thread(cli.run, ["policy", "status", "--store", store]) == 1
    shown = capsys.readouterr().out
    assert re.search(r"^5 +[05]% +10 +20 +0", shown, re.MULTILINE)
    assert "epoch 5: refused by 20: acme.Report.a: bad" in shown
    assert re.search(r"^epoch 5: halted: \d+ of \d+ devices refused the policy", shown, re.MULTILINE)
    assert await asyncio.to_thread(cli.run, ["policy", "status", "--store", store, "--json"]) == 1
    document, former = json.loads(capsys.readouterr().out)
    assert (former["epoch"], former["ack"]) == (4, 0)
    assert (document["ack"], document["nack"], document["reasons"]) == (10, 20, {"acme.Report.a: bad": 20})


def test_what_is_wrong_is_said_in_one_line(fleet, capsys):
    for words, text in (
        (["status", "--store", f"sqlite:///{fleet}/none.db"], "there is no store"),
        (["status", "--store", "none.db"], "the store is"),
        (["serve", "--repo", fleet, "--identity", fleet], "timestamp.json: can't be read"),
    ):
        assert cli.run(["policy", *map(str, words)]) == 2
        shown = capsys.readouterr().err
        assert text in shown
        assert shown.count("\n") == 1
    PushedRepository(fleet / "repository").offer(5)
    words = [
        "serve",
        "--repo",
        fleet / "repository",
        "--identity",
        fleet,
        "--store",
        f"sqlite:///{fleet}/a.db",
    ]
    assert cli.run(["policy", *map(str, words)]) == 2
    assert f"dpmesh: {fleet}: the identity's certificate chain can't be read" in capsys.readouterr().err
    words[4], words[6] = fleet / "device", f"sqlite:///{fleet}/b.db"
    assert cli.run(["policy", *map(str, [*words, "--listen", "127.0.0.1:0"])]) == 2
    assert "device/certificate.pem: is a device's: run" in capsys.readouterr().err
    assert cli.run(["policy", "status", "--store", f"sqlite:///{fleet}/a.db"]) == 0
