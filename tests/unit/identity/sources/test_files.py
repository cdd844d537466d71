"""Identities from files: three files that are written one after the other are taken together, or not at all."""

from __future__ import annotations

import asyncio
import os
import time
import traceback

import pytest

from dpmesh.errors import IdentityError
from dpmesh.identity import FileSource, RotatingIdentity
from dpmesh.identity.sources import files
from tests.support import children
from tests.support.certificates import DOMAIN, Leaf, Root

NAMES = {"certificates": "tls.crt", "key": "tls.key", "trust_bundle": "ca.crt"}
ROOT, OTHER = Root(), Root()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(files, "_PAUSE", 0.01)
    monkeypatch.setattr(files, "_PATIENCE", 0.2)


@pytest.fixture
def paths(tmp_path):
    return {part: tmp_path / name for part, name in NAMES.items()}


def write(paths, leaf: Leaf, *parts: str) -> Leaf:
    for part in parts or NAMES:
        paths[part].write_bytes(getattr(leaf, part))
    return leaf


def leaf(root: Root = ROOT, **options) -> Leaf:
    return root.leaf(now=time.time(), **options)


async def refused(source) -> IdentityError:
    with pytest.raises(IdentityError) as caught:
        await source.fetch()
    return caught.value


async def test_what_the_files_hold(paths):
    written = write(paths, leaf())
    source = FileSource(**paths)
    assert source.follows
    before = time.time()
    found = await source.fetch()
    assert (found.certificates, found.key, found.trust_bundle) == (
        written.certificates,
        written.key,
        written.trust_bundle,
    )
    assert found.trust_domain == DOMAIN
    assert before <= found.obtained <= time.time()


async def test_files_that_do_not_change_are_the_same_identity(paths):
    write(paths, leaf())
    source = FileSource(**paths)
    first = await source.fetch()
    assert await source.fetch() is first
    write(paths, leaf())
    assert (await source.fetch()).key != first.key


async def test_a_chain_that_leads_to_the_root_is_taken(paths):
    below = ROOT.intermediate()
    own = leaf(below)
    write(paths, Leaf(own.certificates + below.pem, own.key, OTHER.pem + ROOT.pem))
    assert (await FileSource(**paths).fetch()).trust_domain == DOMAIN
    write(paths, Leaf(own.certificates, own.key, ROOT.pem))
    assert (await refused(FileSource(**paths))).reason == "UNTRUSTED"


@pytest.mark.parametrize(
    "order", [("key", "certificates"), ("certificates", "key"), ("certificates",), ("key",)]
)
async def test_parts_that_do_not_fit_are_waited_for(paths, order, monkeypatch):
    monkeypatch.setattr(files, "_PATIENCE", 30)
    write(paths, leaf())
    source = FileSource(**paths)
    old = await source.fetch()
    new = leaf()
    write(paths, new, order[0])
    fetching = asyncio.create_task(source.fetch())
    await asyncio.sleep(0.1)
    assert not fetching.done()
    if len(order) == 2:
        write(paths, new, order[1])
        assert (await fetching).key == new.key
    else:  # Who was writing took it back.
        write(paths, Leaf(old.certificates, old.key, old.trust_bundle), order[0])
        assert await fetching is old


async def test_a_new_root_is_waited_for(paths, monkeypatch):
    monkeypatch.setattr(files, "_PATIENCE", 30)
    write(paths, leaf())
    source = FileSource(**paths)
    await source.fetch()
    new = leaf(OTHER)
    write(paths, new, "certificates", "key")
    fetching = asyncio.create_task(source.fetch())
    await asyncio.sleep(0.1)
    assert not fetching.done()
    write(paths, new, "trust_bundle")
    assert (await fetching).trust_bundle == OTHER.pem


async def test_a_half_written_bundle_is_not_taken(paths, monkeypatch):
    monkeypatch.setattr(files, "_PATIENCE", 30)
    # The half is a good bundle by itself. Only a second reading tells.
    own = leaf()
    write(paths, Leaf(own.certificates, own.key, ROOT.pem))
    source = FileSource(**paths)
    read, whole = source._read, ROOT.pem + OTHER.pem

    def read_and_write():
        found = read()
        paths["trust_bundle"].write_bytes(whole)
        return found

    monkeypatch.setattr(source, "_read", read_and_write)
    assert (await source.fetch()).trust_bundle == whole


@pytest.mark.parametrize("missing", NAMES)
async def test_a_missing_file_is_named_by_what_it_is(paths, missing):
    write(paths, leaf())
    paths[missing].unlink()
    error = await refused(FileSource(**paths))
    assert error.reason == "ISSUER_UNAVAILABLE"
    assert "FileNotFoundError" in str(error)
    assert str(paths[missing]) not in "".join(traceback.format_exception(error))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda own: Leaf(own.certificates, leaf().key, own.trust_bundle), "MALFORMED"),
        (lambda own: Leaf(own.certificates, b"hunter2", own.trust_bundle), "MALFORMED"),
        (lambda own: Leaf(own.certificates, own.key, OTHER.pem), "UNTRUSTED"),
        (lambda own: Leaf(own.certificates, own.key, b"hunter2"), "MALFORMED"),
        (lambda own: Leaf(own.certificates + OTHER.pem, own.key, OTHER.pem), "UNTRUSTED"),
        (lambda own: Leaf(own.certificates, own.key, b""), "ISSUER_UNAVAILABLE"),
        (lambda own: Leaf(own.certificates, own.key, b"\n" * (2**20 + 1)), "ISSUER_UNAVAILABLE"),
        (lambda _: ROOT.leaf(now=time.time() - 7200, life=3600), "EXPIRED"),
    ],
    ids=["foreign key", "no key", "foreign root", "no root", "broken chain", "empty", "too large", "over"],
)
async def test_what_never_fits_is_refused_in_limited_time(paths, change, reason):
    write(paths, change(leaf()))
    error = await asyncio.wait_for(refused(FileSource(**paths)), 30)
    assert error.reason == reason
    assert "hunter2" not in "".join(traceback.format_exception(error))


async def test_a_root_with_the_same_name_and_another_key_does_not_do(paths):
    own = leaf(Root("one name"))
    write(paths, Leaf(own.certificates, own.key, Root("one name").pem))
    assert (await refused(FileSource(**paths))).reason == "UNTRUSTED"


async def test_files_that_never_stay_the_same_are_given_up(paths, monkeypatch):
    write(paths, leaf())
    source = FileSource(**paths)
    read = source._read
    monkeypatch.setattr(source, "_read", lambda: (read()[0] + os.urandom(8), *read()[1:]))
    assert (await asyncio.wait_for(refused(source), 30)).reason == "MALFORMED"


async def test_a_pipe_does_not_hang_it(paths):
    write(paths, leaf())
    paths["key"].unlink()
    os.mkfifo(paths["key"])
    assert (await asyncio.wait_for(refused(FileSource(**paths)), 30)).reason == "ISSUER_UNAVAILABLE"
    assert (await asyncio.wait_for(refused(FileSource(**{**paths, "key": paths["key"].parent})), 30)).reason


async def test_folders_in_the_place_of_files_leave_no_descriptor_open(paths):
    """Containers get a folder where the file that is mounted does not exist. It is read again for as long as it stays."""
    write(paths, leaf())
    source = FileSource(**{**paths, "key": paths["key"].parent})
    descriptors = os.listdir("/proc/self/fd")
    assert (await refused(source)).reason == "ISSUER_UNAVAILABLE"
    assert len(os.listdir("/proc/self/fd")) == len(descriptors)


async def test_what_was_read_and_is_over_meanwhile_is_refused(paths):
    now = time.time()
    write(paths, ROOT.leaf(now=now, life=60))
    source = FileSource(**paths, clock=lambda: now)
    await source.fetch()
    now += 61
    assert (await refused(source)).reason == "EXPIRED"


async def test_closing_forgets(paths):
    write(paths, leaf())
    source = FileSource(**paths)
    await source.fetch()
    await source.close()
    assert source._last is None


def test_a_file_that_may_not_be_read(paths, tmp_path):
    write(paths, leaf())
    paths["key"].chmod(0)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and folder.name.startswith("pytest"):
            folder.chmod(0o755)
    text = children.as_ordinary_user(lambda: str(asyncio.run(refused(FileSource(**paths)))))
    assert "PermissionError" in text


async def test_kubernetes_swaps_the_folder_and_the_new_identity_is_in_force(tmp_path, monkeypatch):
    """How the kubelet updates a secret: a link to a folder is replaced in one step."""
    monkeypatch.setattr("dpmesh.identity.rotation.schedule.POLL", 0.02)

    def swap(number: int) -> Leaf:
        folder = tmp_path / f"..{number}"
        folder.mkdir()
        written = write({part: folder / name for part, name in NAMES.items()}, leaf())
        (tmp_path / "..next").symlink_to(folder.name)
        (tmp_path / "..next").rename(tmp_path / "..data")
        return written

    first = swap(1)
    for name in NAMES.values():
        (tmp_path / name).symlink_to(f"..data/{name}")
    source = FileSource(*(tmp_path / name for name in NAMES.values()))
    async with RotatingIdentity(source) as identity:
        assert identity.current.key == first.key
        for generation in range(1, 6):
            new = swap(generation + 1)
            assert await asyncio.wait_for(identity.wait(generation), 30) == generation + 1
            assert (identity.current.certificates, identity.current.key) == (new.certificates, new.key)
