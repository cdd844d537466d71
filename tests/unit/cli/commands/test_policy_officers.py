"""`dpmesh policy key, init, sign, publish, halt, rotate`: officers on their own machines, and their mistakes."""

from __future__ import annotations

import asyncio
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from dpmesh import cli
from tests.support.tuf_repositories import Device

PROTO = """syntax = "proto3";
package acme.officers.v1;
import "dpmesh/v1/privacy.proto";
message Report {
  string id = 1 [(dpmesh.v1.field).unit = {}];
  double speed = 2 [(dpmesh.v1.field).numeric = {lower: 0 upper: 1 epsilon: 1}];
}
"""
NAMES = ("root", "alice", "bob", "online", "rings")


def policy(epoch: int, epsilon: float, name: str = "speed") -> str:
    rule = f"{{numeric: {{lower: 0, upper: 1, epsilon: {epsilon}}}}}"
    return f"epoch: {epoch}\nfields:\n  acme.officers.v1.Report.{name}: {rule}\n"


@pytest.fixture
def run(dpmesh):
    """Runs a command that has to succeed; returns its lines."""

    def call(*arguments: object) -> list[str]:
        ran = dpmesh("policy", *arguments)
        assert ran.code == 0, ran.err
        return ran.out.splitlines()

    return call


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with keys, and a repository with epoch 1 published."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        Path("r.proto").write_text(PROTO)
        Path("one.yaml").write_text(policy(1, 1))
        for arguments in (
            *(("key", f"{name}.key") for name in NAMES),
            ("init", "repo", "--fleet", "cars", "--root", "root.key.pub", "--root-key", "root.key", "--officer",
             "alice.key.pub", "--officer", "bob.key.pub", "--online", "online.key.pub", "--rings", "rings.key.pub"),
            ("sign", "one.yaml", "--repo", "repo", "--key", "alice.key", "--proto", "r.proto"),
            ("publish", "--repo", "repo", "--key", "online.key", "--rings-key", "rings.key"),
        ):  # fmt: skip
            assert cli.run(["policy", *arguments]) == 0
    return folder


@pytest.fixture
def repo(made, workplace) -> str:
    shutil.copytree(made, workplace, dirs_exist_ok=True)
    return "repo"


def epoch(folder: str) -> int | None:
    """What a new device of the fleet is offered."""
    image = (Path(folder) / "metadata" / "1.root.json").read_bytes()
    repository = SimpleNamespace(folder=Path(folder).absolute(), image=image)
    devices = len(list(Path().glob("device-*")))
    return asyncio.run(Device(Path(f"device-{devices}").absolute(), repository).epoch())


def test_two_officers_sign_a_looser_policy(dpmesh, run, write, repo) -> None:
    assert epoch(repo) == 1
    write("two.yaml", policy(2, 2))
    sign = ("sign", "two.yaml", "--repo", repo, "--proto", "r.proto", "--key")
    ran = dpmesh("policy", *sign, "alice.key")
    assert (ran.code, "say why with --reason" in ran.err) == (2, True)
    lines = run(*sign, "alice.key", "--reason", "noise hid a fault", "--not-before", "2026-01-31T08:00Z")
    assert lines == [
        "compared with epoch 1:",
        "looser  acme.officers.v1.Report.speed: epsilon 1 -> 2",
        "1 difference: the new policy is looser",
        "policy.yaml, epoch 2: signed by 1 of 2 officers",
        "Next: another officer runs dpmesh policy sign --repo repo --key OFFICER",
    ]
    ran = dpmesh("policy", "publish", "--repo", repo, "--key", "online.key")
    assert (ran.code, "1 of 2 officers signed it" in ran.err) == (2, True)
    run("publish", "--repo", repo, "--key", "online.key", "--renew")
    assert epoch(repo) == 1
    shutil.copytree(repo, "bobs")  # Only the repository travels.
    lines = run("sign", "--repo", "bobs", "--key", "bob.key", "--proto", "r.proto")
    assert lines[1:5] == [
        "looser  acme.officers.v1.Report.speed: epsilon 1 -> 2",
        "1 difference: the new policy is looser",
        "policy.yaml waits: it begins 2026-01-31 08:00 UTC; reason: 'noise hid a fault'",
        "policy.yaml, epoch 2: signed by 2 of 2 officers",
    ]
    run("publish", "--repo", "bobs", "--key", "online.key")
    assert epoch("bobs") == 2


def test_a_policy_is_compared_with_all_that_devices_may_have(dpmesh, run, write, repo) -> None:
    run("sign", write("two.yaml", policy(2, 0.5)), "--repo", repo, "--key", "bob.key", "--proto", "r.proto")
    keys = ("--key", "online.key", "--rings-key", "rings.key")
    assert "5% of the fleet" in run("publish", "--repo", repo, *keys, "--share", "0.05")[0]
    assert run("halt", "--repo", repo, *keys) == ["epoch 2 is halted: no further device takes it"]
    assert epoch(repo) == 1
    back = (
        "sign",
        write("three.yaml", policy(3, 1)),
        "--repo",
        repo,
        "--key",
        "bob.key",
        "--proto",
        "r.proto",
    )
    assert dpmesh("policy", *back).code == 2
    lines = run(*back, "--reason", "epoch 2 broke the brakes")
    assert [line for line in lines if not line.startswith("Next")] == [
        "compared with epoch 2:",
        "looser  acme.officers.v1.Report.speed: epsilon 0.5 -> 1",
        "1 difference: the new policy is looser",
        "compared with epoch 1:",
        "0 differences: the new policy is equal",
        "policy.yaml, epoch 3: signed by 1 of 2 officers",
    ]


def test_an_officer_sees_that_another_one_did_not_look(dpmesh, run, write, repo) -> None:
    lines = run(
        "sign", write("two.yaml", policy(2, 2)), "--repo", repo, "--key", "alice.key", "--reason", "x"
    )
    assert lines[0].startswith("without --proto nobody checks")
    ran = dpmesh("policy", "sign", "--repo", repo, "--key", "bob.key", "--proto", "r.proto")
    assert (ran.code, "the first officer did not see it" in ran.err) == (2, True)


def test_the_online_key_is_replaced(dpmesh, run, write, repo) -> None:
    run("key", "new.key")
    changes = [
        text
        for role in ("snapshot", "timestamp")
        for text in ("--add", f"{role}=new.key.pub", "--drop", f"{role}=online.key.pub")
    ]
    lines = run("rotate", "--repo", repo, "--key", "root.key", *changes)
    assert lines[0].endswith("Other keys have to sign what is published, so it waits.")
    assert epoch(repo) == 1
    run("publish", "--repo", repo, "--key", "new.key", "--old-key", "online.key")
    assert epoch(repo) == 1
    assert dpmesh("policy", "publish", "--repo", repo, "--key", "online.key").code == 2
    assert run("rotate", "--repo", repo, "--key", "root.key")[0].startswith("the next root is published")
    assert epoch(repo) == 1


def test_what_ends_soon_is_said(dpmesh, repo, monkeypatch) -> None:
    from dpmesh.cli.commands import policy_officers

    monkeypatch.setattr(policy_officers, "_SOON", 400 * 86400)
    ran = dpmesh("policy", "publish", "--repo", repo, "--key", "online.key")
    assert ran.code == 0
    for text in (
        "root.json ends",
        "policy rotate",
        "targets.json ends",
        "sign without a file",
        "rings.json ends",
    ):
        assert text in ran.err


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("sign", "one.yaml"), 2, "epoch: 1 is not larger than 1, which is published"),
        (("sign", "none.yaml"), 2, "none.yaml: can't be read"),
        (("sign", "bad.yaml"), 2, "is not known here"),
        (("sign", "typo.yaml", "--proto", "r.proto"), 2, "no proto has acme.officers.v1.Report.sped"),
        (("sign", "rule.yaml", "--proto", "r.proto"), 1, "acme.officers.v1.Report.speed"),
        (("sign", "two.yaml", "--not-before", "tomorrow"), 2, "a time with its zone"),
        (("sign", "two.yaml", "--key", "root.key"), 2, "is none of the role's keys"),
        (("sign", "two.yaml", "--key", "lost.key"), 2, "lost.key: can't be read"),
        (("sign", "two.yaml", "--key", "alice.key.pub"), 2, "its private key has to sign"),
        (("sign", "two.yaml", "--key", "awskms:alias/alice"), 2, "can't sign for the role"),
        (("sign", "two.yaml", "--repo", "elsewhere"), 2, "is no repository"),
        (("publish", "--key", "alice.key"), 2, "is none of the role's keys"),
        (("publish", "--key", "online.key", "--share", "0.04", "--rings-key", "rings.key"), 2, "0.05 to 1"),
        (("publish", "--key", "online.key", "--share", "1"), 2, "--rings-key"),
        (("publish", "--key", "online.key", "--renew", "--share", "1"), 2, "--renew changes no --share"),
        (("rotate", "--key", "root.key", "--drop", "targets=rings.key.pub"), 2, "is none of the role"),
        (("rotate", "--key", "root.key", "--threshold", "targets=3"), 2, "its threshold is 3"),
        (("rotate", "--key", "root.key", "--threshold", "targets"), 2, "a number"),
        (("key", "alice.key"), 2, "is there already"),
    ],
)  # fmt: skip
def test_wrong_input(dpmesh, write, repo, arguments, code, text) -> None:
    write("two.yaml", policy(2, 0.5))
    write("bad.yaml", "epoch: 2\nfeilds: {}")
    write("typo.yaml", policy(2, 0.5, "sped"))
    write("rule.yaml", policy(2, -1))
    given = list(arguments)
    if "--repo" not in given and given[0] != "key":
        given += ["--repo", repo]
    if given[0] == "sign" and "--key" not in given:
        given += ["--key", "alice.key"]
    before = {path: path.read_bytes() for path in Path(repo).rglob("*") if path.is_file()}
    ran = dpmesh("policy", *given)
    assert text in ran.err
    assert ran.code == code
    after = {path: path.read_bytes() for path in Path(repo).rglob("*") if path.is_file()}
    assert after == before


def test_nothing_of_keys_is_logged(run, repo, caplog) -> None:
    with caplog.at_level(logging.INFO):
        run("publish", "--repo", repo, "--key", "online.key")
    assert [each for each in caplog.records if each.name.startswith(("tuf", "securesystemslib"))] == []
