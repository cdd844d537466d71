"""`dpmesh identity`: an authority in a folder, its tokens and files, and a served issuer that a device enrols with."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import stat
import sys
import time
from pathlib import Path

import pytest
from cryptography import x509

from dpmesh.errors import IdentityError
from dpmesh.identity import FileSource, RotatingIdentity
from dpmesh.identity.ca.folder import open_folder
from dpmesh.identity.ca.issuer import Issuer
from dpmesh_grpc.issuer.server import issuer_server
from dpmesh_grpc.issuer.source import IssuerSource


@pytest.fixture
def ca(dpmesh, workplace: Path) -> Path:
    ran = dpmesh("identity", "init", "ca", "--trust-domain", "mesh.example")
    assert (ran.code, ran.err) == (0, "")
    return Path("ca")


def modes(folder: Path) -> set[str]:
    return {oct(stat.S_IMODE(path.stat().st_mode)) for path in folder.iterdir()}


def test_init_makes_a_folder_for_its_owner_only(ca: Path) -> None:
    assert oct(stat.S_IMODE(ca.stat().st_mode)) == "0o700"
    assert modes(ca) == {"0o600"}


@pytest.mark.parametrize("name", ["", "Mesh.Example", "mesh example", "spiffe://mesh", "-", "a" * 300])
def test_init_with_a_bad_trust_domain(dpmesh, workplace: Path, name: str) -> None:
    ran = dpmesh("identity", "init", "ca", "--trust-domain", name)
    assert ran.code == 2
    assert ran.out == ""
    assert "trust domain" in ran.err
    assert not Path("ca", "root.key").exists()


def test_init_does_not_touch_what_is_there(dpmesh, ca: Path) -> None:
    before = (ca / "root.pem").read_bytes()
    ran = dpmesh("identity", "init", "ca", "--trust-domain", "other.example")
    assert (ran.code, ran.out) == (2, "")
    assert "not empty" in ran.err
    assert (ca / "root.pem").read_bytes() == before


def test_a_token_serves_one_device_and_is_kept_as_a_hash(dpmesh, ca: Path) -> None:
    made = json.loads(dpmesh("identity", "token", "ca", "--json").out)
    assert re.fullmatch(r"[\w-]{20,}", made["token"])
    for path in ca.iterdir():
        assert made["token"].encode() not in path.read_bytes()
    counted = json.loads(dpmesh("identity", "status", "ca", "--json").out)
    assert (counted["trust_domain"], counted["invitations"], counted["devices"]) == ("mesh.example", 1, 1)
    assert counted["intermediate_ends"] > time.time()


async def test_issued_files_are_an_identity_that_can_be_followed(dpmesh, ca: Path) -> None:
    ran = await asyncio.to_thread(dpmesh, "identity", "issue", "ca", "--out", "files", "--server")
    assert (ran.code, ran.err) == (0, "")
    assert modes(Path("files")) == {"0o600"}
    names = ("certificate.pem", "key.pem", "trust_bundle.pem")
    async with RotatingIdentity(FileSource(*(Path("files", name) for name in names))) as identity:
        assert identity.current.trust_domain == "mesh.example"
        leaf = x509.load_pem_x509_certificate(identity.current.certificates)
        names_in = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names_in.get_values_for_type(x509.DNSName) == ["mesh.example"]
        await asyncio.to_thread(dpmesh, "identity", "issue", "ca", "--out", "files", "--server")
        assert await asyncio.wait_for(identity.wait(1), 20) == 2


@pytest.mark.parametrize("minutes", ["9", "61", "0", "-1", "nan"])
def test_lives_out_of_range(dpmesh, ca: Path, minutes: str) -> None:
    ran = dpmesh("identity", "issue", "ca", "--out", "files", "--minutes", minutes)
    assert ran.code == 2
    assert not Path("files").exists()


def test_renew_needs_the_root_key(dpmesh, ca: Path) -> None:
    before = (ca / "intermediate.pem").read_bytes()
    key = (ca / "root.key").read_bytes()
    (ca / "root.key").unlink()
    ran = dpmesh("identity", "renew", "ca")
    assert (ran.code, ran.out) == (2, "")
    assert "root.key" in ran.err
    with os.fdopen(os.open(ca / "root.key", os.O_CREAT | os.O_WRONLY, 0o600), "wb") as file:
        file.write(key)
    assert dpmesh("identity", "renew", "ca").code == 0
    assert (ca / "intermediate.pem").read_bytes() != before


def test_a_root_key_with_a_password(dpmesh, workplace: Path) -> None:
    Path("password").write_text("correct horse\n")
    Path("wrong").write_text("staple\n")
    arguments = ("identity", "init", "ca", "--trust-domain", "mesh.example", "--password-file", "password")
    assert dpmesh(*arguments).code == 0
    for file in ([], ["--password-file", "wrong"]):
        ran = dpmesh("identity", "renew", "ca", *file)
        assert (ran.code, ran.out) == (2, "")
        assert "horse" not in ran.err
    assert dpmesh("identity", "renew", "ca", "--password-file", "password").code == 0


@pytest.mark.parametrize("command", ["token", "status", "tokens", "serve", "renew"])
@pytest.mark.parametrize("wrong", ["missing", "garbage", "open"])
def test_a_folder_that_is_none(dpmesh, ca: Path, command: str, wrong: str) -> None:
    if wrong == "missing":
        ca.rename("elsewhere")
    elif wrong == "garbage":
        (ca / "intermediate.pem").write_bytes(b"-----BEGIN CERTIFICATE-----\nnot one\n")
    else:
        (ca / "intermediate.key").chmod(0o644)
    ran = dpmesh("identity", command, "ca")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.count("\n") == 1
    assert "ca" in ran.err


def test_tokens_lists_public_keys_only(dpmesh, ca: Path) -> None:
    keys = json.loads(dpmesh("identity", "tokens", "ca", "--json").out)
    assert len(keys) >= 2
    assert any(key["not_before"] <= time.time() < key["not_after"] for key in keys)
    assert all(set(key) == {"key_id", "not_before", "not_after", "public_key"} for key in keys)
    shown = dpmesh("identity", "tokens", "ca").out
    assert keys[0]["key_id"][:16] in shown


async def test_a_served_issuer_enrols_renews_and_refuses(dpmesh, ca: Path) -> None:
    program = Path(sys.executable).with_name("dpmesh")
    command = (program, "identity", "serve", "ca", "--listen", "127.0.0.1:0")
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        line = await asyncio.wait_for(process.stdout.readline(), 30)
        port = int(re.search(rb"issuing on 127\.0\.0\.1:(\d+)", line)[1])
        made = json.loads((await asyncio.to_thread(dpmesh, "identity", "token", "ca", "--json")).out)
        bundle = (ca / "root.pem").read_bytes()
        source = IssuerSource(f"127.0.0.1:{port}", bundle, enrolment_token=made["token"])
        async with RotatingIdentity(source) as identity:
            first = identity.current
            await identity.renew("test")
            assert identity.current.certificates != first.certificates
            assert 590 < first.not_after - first.obtained <= 3600
            again = IssuerSource(f"127.0.0.1:{port}", bundle, enrolment_token=made["token"])
            with pytest.raises(IdentityError, match="REFUSED"):
                await again.fetch()
            ran = await asyncio.to_thread(dpmesh, "identity", "revoke", "ca", made["device"])
            assert ran.code == 0
            with pytest.raises(IdentityError, match="REFUSED"):
                await identity.renew("test")
        counted = json.loads((await asyncio.to_thread(dpmesh, "identity", "status", "ca", "--json")).out)
        assert (counted["devices"], counted["revoked"], counted["certificates"]) == (1, 1, 2)
    finally:
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 20) == 0


async def test_a_token_for_a_server_gives_a_servers_certificates_for_good(dpmesh, ca: Path) -> None:
    with_server = json.loads(
        (await asyncio.to_thread(dpmesh, "identity", "token", "ca", "--server", "--json")).out
    )
    without = json.loads((await asyncio.to_thread(dpmesh, "identity", "token", "ca", "--json")).out)
    opened = open_folder(ca)
    issuer = Issuer(opened.authority, opened.enrolments)
    try:
        async with issuer_server(issuer, "127.0.0.1:0") as port:
            for made, names in ((with_server, ["mesh.example"]), (without, [])):
                bundle = (ca / "root.pem").read_bytes()
                source = IssuerSource(f"127.0.0.1:{port}", bundle, enrolment_token=made["token"])
                for _ in range(3):  # enrolled, and renewed twice
                    leaf = x509.load_pem_x509_certificate((await source.fetch()).certificates)
                    found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
                    assert found.get_values_for_type(x509.DNSName) == names
    finally:
        issuer.close()
        opened.enrolments.close()
