"""What officers do with a repository, and what devices believe of it."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from tuf.api.metadata import Metadata

from dpmesh.errors import ConfigError
from dpmesh.rollout import tuf_keys
from dpmesh.rollout.tuf_repository import PolicyRepository
from tests.support.tuf_repositories import Device

NAMES = ("root", "root2", "alice", "bob", "online", "rings", "stranger")


@pytest.fixture
def keys(tmp_path):
    """Names of private keys, by their owners."""
    for name in NAMES:
        tuf_keys.create(tmp_path / f"{name}.key")
    return {name: str(tmp_path / f"{name}.key") for name in NAMES}


def public(name):
    return tuf_keys.read_public(Path(f"{name}.pub"))


@pytest.fixture
def make(tmp_path, keys):
    """Makes a repository."""

    def made(
        folder="repo", fleet="cars", *, roots=("root",), root_threshold=1, officer_threshold=1, rings=True
    ):
        repository = PolicyRepository(tmp_path / folder)
        public_roots = [public(keys[name]) for name in roots]
        repository.create(
            fleet,
            roots=public_roots,
            root_signers=[tuf_keys.signer(keys[name], public_roots) for name in roots],
            root_threshold=root_threshold,
            officers=[public(keys["alice"]), public(keys["bob"])],
            officer_threshold=officer_threshold,
            online=public(keys["online"]),
            rings=public(keys["rings"]) if rings else None,
        )
        return repository

    return made


@pytest.fixture
def write(tmp_path):
    def written(epoch, name="policy.yaml", more=""):
        path = tmp_path / name
        path.write_text(f"epoch: {epoch}\n{more}...\n")
        return path

    return written


@pytest.fixture
def device(tmp_path):
    """A device with the first root in its image."""

    def made(name="device", folder="repo"):
        image = (tmp_path / folder / "metadata" / "1.root.json").read_bytes()
        return Device(tmp_path / name, SimpleNamespace(folder=tmp_path / folder, image=image))

    return made


async def test_what_officers_publish_is_what_a_device_takes(make, write, keys, device):
    repository, cars = make(rings=False), device()
    assert repository.published() is None
    staged = repository.stage(write(1), keys["alice"], reason="first", not_before=7)
    assert (staged.signers, staged.threshold) == (1, 1)
    assert repository.publish(keys["online"]) == 1
    offer = await cars.source.fetch()
    assert (offer.document.epoch, offer.signers, offer.not_before, offer.reason) == (1, 1, 7, "first")
    assert offer.content == write(1).read_bytes()
    repository.stage(write(2), keys["alice"])
    assert repository.stage(None, keys["bob"]).signers == 2
    repository.publish(keys["online"])
    offer = await cars.source.fetch()
    assert (offer.document.epoch, offer.signers, repository.staged()) == (2, 2, None)
    assert await device("new").epoch() == 2


async def test_a_renewal_changes_nothing_but_the_timestamp(make, write, keys, device, tmp_path):
    repository, cars = make(rings=False), device()
    repository.stage(write(1), keys["alice"])
    repository.publish(keys["online"])
    assert await cars.epoch() == 1
    folder = tmp_path / "repo"
    before = {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
    assert repository.publish(keys["online"]) == 1
    after = {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
    changed = [path.name for path in after if after[path] != before.get(path)]
    assert changed == ["timestamp.json"]
    assert await cars.epoch() is None


def test_a_threshold_that_is_not_reached_publishes_nothing(make, write, keys, tmp_path):
    repository = make(officer_threshold=2, rings=False)
    repository.stage(write(1), keys["alice"])
    for _ in range(2):  # One officer twice is one officer.
        assert repository.stage(None, keys["alice"]).signers == 1
        with pytest.raises(ConfigError, match="1 of 2 officers signed it"):
            repository.publish(keys["online"])
    assert not (tmp_path / "repo" / "metadata" / "timestamp.json").exists()
    repository.stage(write(1), keys["bob"])
    assert repository.publish(keys["online"]) == 1


def test_what_can_not_be_staged(make, write, keys, tmp_path):
    repository = make(rings=False)
    repository.stage(write(4), keys["alice"])
    repository.publish(keys["online"])
    large = write(5, "large.yaml", "version: " + "a" * 256_000 + "\n")
    for path, match in (
        (write(4, "equal.yaml"), "epoch: 4 is not larger than 4"),
        (write(3, "older.yaml"), "epoch: 3 is not larger than 4"),
        (large, "is larger than 256 kB"),
        (write(5, "policy.txt"), "ends with none of"),
        (tmp_path / "gone.yaml", "can't be read"),
        (write(5, "bad.yaml", "colour: blue\n"), "colour: is not known here"),
    ):
        with pytest.raises(ConfigError, match=match):
            repository.stage(path, keys["alice"])
    write(4)
    for name, match in (("stranger", "is none of the role's keys"), ("online", "is none of the role's keys")):
        with pytest.raises(ConfigError, match=match):
            repository.stage(write(5), keys[name])
    for reason in ("x" * 501, "two\nlines"):
        with pytest.raises(ConfigError, match="--reason"):
            repository.stage(write(5), keys["alice"], reason=reason)
    with pytest.raises(ConfigError, match="no policy waits"):
        repository.stage(None, keys["alice"])
    assert repository.staged() is None
    repository.stage(write(5), keys["alice"])
    with pytest.raises(ConfigError, match="another policy waits"):
        repository.stage(write(6), keys["bob"])
    (tmp_path / "repo" / "staged" / "policy.yaml").write_text("epoch: 5\nmode: OBSERVE\n...\n")
    with pytest.raises(ConfigError, match="is not what was signed"):
        repository.publish(keys["online"])


async def test_rings_grow_and_halt(make, write, keys, device):
    repository = make()
    repository.stage(write(1), keys["alice"])
    with pytest.raises(ConfigError, match="--rings-key"):
        repository.publish(keys["online"])
    repository.publish(keys["online"], rings=keys["rings"])
    fleet = [device(f"car{number}") for number in range(40)]
    assert [await car.epoch() for car in fleet] == [1] * 40
    repository.stage(write(2), keys["alice"])
    for share in (0.0, 0.04, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="--share"):
            repository.publish(keys["online"], share=share, rings=keys["rings"])
    taken = set()
    for share in (0.05, 0.5):
        repository.publish(keys["online"], share=share, rings=keys["rings"])
        now = {at for at, car in enumerate(fleet) if await car.epoch() == 2}
        assert not now & taken
        taken |= now
    # Of 40 devices half in expectation: outside of 5 to 35 once in 10 million runs.
    assert 5 <= len(taken) <= 35
    with pytest.raises(ConfigError, match="halt"):
        repository.publish(keys["online"], share=0.4, rings=keys["rings"])
    assert repository.halt(keys["online"], keys["rings"]) == 2
    assert [await car.epoch() for car in fleet] == [None] * 40
    assert await device("new").epoch() == 1  # The former policy.
    repository.stage(write(3), keys["alice"])
    repository.publish(keys["online"])
    assert {await car.epoch() for car in fleet} == {3}


def test_without_a_key_for_rings_there_are_none(make, write, keys):
    repository = make(rings=False)
    repository.stage(write(1), keys["alice"])
    with pytest.raises(ConfigError, match="no key for rings"):
        repository.publish(keys["online"], share=0.5, rings=keys["rings"])
    with pytest.raises(ConfigError, match="there is no policy yet"):
        repository.halt(keys["online"], keys["rings"])


async def test_keys_rotate_and_a_stolen_one_is_worth_nothing(make, write, keys, device, tmp_path):
    repository, cars = make(roots=("root", "root2"), root_threshold=2, rings=False), device()
    repository.stage(write(1), keys["alice"])
    repository.publish(keys["online"])
    assert await cars.epoch() == 1
    drop, add = [("targets", public(keys["bob"]))], [("targets", public(keys["stranger"]))]
    assert (
        repository.rotate([keys["root"]], add=add, drop=drop) == 2
    )  # Of the root before, and of the next one.
    with pytest.raises(ConfigError, match="another root waits"):
        repository.rotate([keys["root2"]], add=add)
    with pytest.raises(ConfigError, match="is none of the role's keys"):
        repository.rotate([keys["alice"]])
    assert not (tmp_path / "repo" / "metadata" / "2.root.json").exists()
    assert repository.rotate([keys["root2"]]) == 0
    with pytest.raises(ConfigError, match="is none of the role's keys"):
        repository.stage(write(2), keys["bob"])
    repository.stage(write(2), keys["stranger"])
    repository.publish(keys["online"])
    assert await cars.epoch() == 2
    assert await device("new").epoch() == 2  # Through both roots.


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"thresholds": [("targets", 3)]}, "its threshold is 3, and it has 2 keys"),
        ({"thresholds": [("nobody", 1)]}, "role 'nobody'"),
        ({"drop": [("targets", "stranger")]}, "is none of the role targets"),
        ({"drop": [("timestamp", "online")]}, "its threshold is 1, and it has 0 keys"),
    ],
)
def test_roots_that_can_not_be(make, keys, change, match):
    repository = make()
    change = {
        name: [(role, public(keys[value]) if isinstance(value, str) else value) for role, value in pairs]
        for name, pairs in change.items()
    }
    with pytest.raises(ConfigError, match=match):
        repository.rotate([keys["root"]], **change)


def test_what_no_repository_can_begin_with(make, keys, tmp_path):
    with pytest.raises(ConfigError, match="needs a name"):
        make(fleet=" ")
    with pytest.raises(ConfigError, match="there are 1 root keys"):
        make(root_threshold=2)
    with pytest.raises(ConfigError, match="one key was given twice"):
        make(roots=("root", "root"))
    make()
    with pytest.raises(ConfigError, match="is a repository already"):
        make()
    with pytest.raises(ConfigError, match="is no repository"):
        PolicyRepository(tmp_path).state()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="can't be written"):
        make("file/repo")


def test_keys_that_can_not_be_used(keys, tmp_path):
    known = [public(keys["alice"])]
    with pytest.raises(ConfigError, match="is there already"):
        tuf_keys.create(tmp_path / "alice.key")
    assert (tmp_path / "alice.key").stat().st_mode & 0o777 == 0o600
    os.chmod(keys["alice"], 0o644)
    with pytest.raises(ConfigError, match="others may read it"):
        tuf_keys.signer(keys["alice"], known)
    os.chmod(keys["alice"], 0o600)
    assert tuf_keys.signer(f"file2:{keys['alice']}", known).public_key == known[0]
    for name, match in (
        (str(tmp_path / "gone.key"), "can't be read"),
        (f"{keys['alice']}.pub", "others may read it"),
        (f"file2:{keys['bob']}", "can't sign for the role"),
        ("awskms:arn:aws:kms:secret", "key awskms:...: can't sign"),
    ):
        with pytest.raises(ConfigError, match=match) as caught:
            tuf_keys.signer(name, known)
        assert "secret" not in str(caught.value)
    with pytest.raises(ConfigError, match="is no public key"):
        tuf_keys.read_public(tmp_path / "alice.key")


PUBLISHER = """
    import sys
    from pathlib import Path
    from dpmesh.rollout.tuf_repository import PolicyRepository
    folder, officer, online = sys.argv[1:]
    repository = PolicyRepository(Path(folder))
    for epoch in range(2, 1000):
        policy = Path(folder).with_name("killed.yaml")
        policy.write_text(f"epoch: {epoch}\\n...\\n")
        if repository.staged() is None:
            repository.stage(policy, officer)
        repository.publish(online)
        print(epoch, flush=True)
"""


async def test_a_publisher_that_is_killed_leaves_the_old_policy_or_the_new_one(
    make, write, keys, device, tmp_path
):
    repository, cars = make(rings=False), device()
    repository.stage(write(1), keys["alice"])
    repository.publish(keys["online"])
    known = await cars.epoch()
    for kill in range(6):
        arguments = [str(tmp_path / "repo"), keys["alice"], keys["online"]]
        publisher = subprocess.Popen(
            [
                sys.executable,
                "-c",
                textwrap.dedent(PUBLISHER).replace("range(2,", f"range({known + 1},"),
                *arguments,
            ],
            stdout=subprocess.PIPE,
        )
        for _ in range(kill + 1):
            publisher.stdout.readline()
        os.kill(publisher.pid, signal.SIGKILL)
        said = publisher.stdout.read().split()
        publisher.stdout.close()
        publisher.wait()
        found = await cars.epoch()
        assert found is not None
        assert found >= max([known + kill, *map(int, said)])
        known = found
        staged = repository.staged()
        if staged is not None:  # It goes on where it was killed.
            known = repository.publish(keys["online"])
            assert await cars.epoch() in (known, None)


async def test_any_web_server_serves_it(make, write, keys, tmp_path):
    repository = make()
    repository.stage(write(1), keys["alice"])
    repository.publish(keys["online"], rings=keys["rings"])
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "repo")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        from tuf.ngclient import Updater

        image = (tmp_path / "repo" / "metadata" / "1.root.json").read_bytes()
        (tmp_path / "client").mkdir()
        updater = Updater(
            str(tmp_path / "client"), f"{url}/metadata/", str(tmp_path), f"{url}/targets/", bootstrap=image
        )
        updater.refresh()
        info = updater.get_targetinfo("policy.yaml")
        content = open(updater.download_target(info), "rb").read()  # noqa: SIM115
        server.shutdown()
    assert content == write(1).read_bytes()


@pytest.mark.parametrize(
    "name", ["1.targets.json", "1.snapshot.json", "1.rings.json", "timestamp.json", "2.root.json"]
)
def test_officers_build_on_nothing_that_somebody_changed(make, write, keys, tmp_path, name):
    repository = make()
    repository.stage(write(1), keys["alice"])
    repository.publish(keys["online"], rings=keys["rings"])
    assert repository.rotate([keys["root"]]) == 0
    path = tmp_path / "repo" / "metadata" / name
    changed = json.loads(path.read_bytes())
    changed["signed"]["expires"] = "2099-01-01T00:00:00Z"
    path.write_text(json.dumps(changed))
    for work in (
        lambda: repository.stage(write(2), keys["alice"]),
        lambda: repository.publish(keys["online"]),
        lambda: repository.halt(keys["online"], keys["rings"]),
        lambda: repository.rotate([keys["root"]]),
    ):
        with pytest.raises(ConfigError, match=name):
            work()


def test_no_private_key_is_in_the_repository(make, write, keys, tmp_path):
    repository = make()
    repository.stage(write(1), keys["alice"])
    repository.publish(keys["online"], rings=keys["rings"])
    for path in (tmp_path / "repo").rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert b"PRIVATE" not in data
            assert str(tmp_path).encode() not in data
            if re.fullmatch(r"[0-9a-f]{64}\..*", path.name):
                assert path.name.startswith(hashlib.sha256(data).hexdigest())
            elif path.suffix == ".json" and path.name != "rings.json":
                assert json.loads(data)["signatures"]
                assert Metadata.from_bytes(data)
