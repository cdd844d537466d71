"""What officers do with a repository, and what devices trust of it."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import re
import shutil
import signal
import threading
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
from tuf.api.metadata import Metadata, TargetFile

from dpmesh import files
from dpmesh.errors import ConfigError, PolicyUnavailableError
from dpmesh.rollout import rings, tuf_folder, tuf_keys
from dpmesh.rollout.tuf_repository import PolicyRepository
from dpmesh.rollout.tuf_ring_file import delegations
from tests.support import children
from tests.support.tuf_repositories import Device, later

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
        folder="repo",
        fleet="cars",
        *,
        roots=("root",),
        signers=None,
        root_threshold=1,
        officer_threshold=1,
        rings=True,
    ):
        repository = PolicyRepository(tmp_path / folder)
        public_roots = [public(keys[name]) for name in roots]
        repository.create(
            fleet,
            roots=public_roots,
            root_signers=[tuf_keys.signer(keys[name], public_roots, "root") for name in signers or roots],
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
    with pytest.raises(ConfigError, match="no policy waits"):
        repository.stage(None, keys["alice"])
    repository.stage(write(4), keys["alice"])
    repository.publish(keys["online"])
    large = write(5, "large.yaml", "version: " + "a" * 256_000 + "\n")
    for path, match in (
        (write(4, "equal.yaml"), "epoch: 4 is not larger than 4"),
        (write(0, "none.yaml"), "epoch: is missing: write a whole number above 4, as in `epoch: 5`"),
        (write(3, "older.yaml"), "epoch: 3 is not larger than 4"),
        (large, "is larger than 256 kB"),
        (write(5, "policy.txt"), "ends with none of"),
        (tmp_path / "gone.yaml", "can't be read"),
        (write(5, "bad.yaml", "colour: blue\n"), "colour: is not known here"),
    ):
        with pytest.raises(ConfigError, match=match):
            repository.stage(path, keys["alice"])
    write(4)
    for name, match in (
        ("stranger", "role's keys .role: targets, the officers"),
        ("online", "is none of the role's keys"),
    ):
        with pytest.raises(ConfigError, match=match):
            repository.stage(write(5), keys[name])
    for reason in ("x" * 501, "two\nlines"):
        with pytest.raises(ConfigError, match="--reason"):
            repository.stage(write(5), keys["alice"], reason=reason)
    assert repository.staged() is None
    repository.stage(write(5), keys["alice"])
    with pytest.raises(ConfigError, match="another policy waits"):
        repository.stage(write(6), keys["bob"])
    (tmp_path / "repo" / "staged" / "policy.yaml").write_text("epoch: 5\nmode: OBSERVE\n...\n")
    with pytest.raises(ConfigError, match="is not what was signed"):
        repository.publish(keys["online"])


def placed(car, cohort):
    """Gives a device a secret with about this place in the roll-out of epoch 2."""
    secret = next(
        secret
        for secret in (number.to_bytes(32, "big") for number in count())
        if abs(rings.cohort(secret, 2) / 2**64 - cohort) < 0.01
    )
    car.cache.mkdir(parents=True, mode=0o700)
    files.write(car.cache / "device-secret", secret)
    return car


async def test_rings_grow_and_halt(make, write, keys, device):
    repository = make()
    repository.stage(write(1), keys["alice"])
    with pytest.raises(ConfigError, match="--rings-key"):
        repository.publish(keys["online"])
    repository.publish(keys["online"], rings=keys["rings"])
    fleet = [placed(device(f"car{cohort}"), cohort) for cohort in (0.02, 0.3, 0.9)]
    assert [await car.epoch(takes=True) for car in fleet] == [1, 1, 1]
    repository.stage(write(2), keys["alice"])
    for share in (0.0, 0.04, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="--share"):
            repository.publish(keys["online"], share=share, rings=keys["rings"])
    for share, taken in ((0.05, [2, None, None]), (0.5, [None, 2, None])):
        repository.publish(keys["online"], share=share, rings=keys["rings"])
        assert [await car.epoch(takes=True) for car in fleet] == taken
    with pytest.raises(ConfigError, match="halt"):
        repository.publish(keys["online"], share=0.4, rings=keys["rings"])
    assert repository.halt(keys["online"], keys["rings"]) == 2
    assert [await car.epoch() for car in fleet] == [None, None, None]
    assert await placed(device("new"), 0.02).epoch() == 1  # The former policy.
    repository.stage(write(3), keys["alice"])
    repository.publish(keys["online"])
    assert [await car.epoch() for car in fleet] == [3, 3, 3]


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
    with pytest.raises(ConfigError, match="--root: one key was given twice"):
        make(roots=("root", "root"))
    with pytest.raises(ConfigError, match="1 more private keys have to sign"):
        make(roots=("root", "alice"), signers=("root", "root"), root_threshold=2)
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
        tuf_keys.signer(keys["alice"], known, "targets")
    os.chmod(keys["alice"], 0o600)
    assert tuf_keys.signer(f"file2:{keys['alice']}", known, "targets").public_key == known[0]
    for name, match in (
        (str(tmp_path / "gone.key"), "can't be read"),
        (f"{keys['alice']}.pub", "is a public key: its private key has to sign"),
        (f"file2:{keys['bob']}", "can't sign for the role"),
        ("awskms:arn:aws:kms:secret", "key awskms:...: can't sign"),
    ):
        with pytest.raises(ConfigError, match=match) as caught:
            tuf_keys.signer(name, known, "targets")
        assert "secret" not in str(caught.value)
    with pytest.raises(ConfigError, match="is no public key"):
        tuf_keys.read_public(tmp_path / "alice.key")


async def first(make, write, keys, **options):
    """A repository with epoch 1, which Alice signed."""
    repository = make(**options)
    repository.stage(write(1), keys["alice"])
    repository.publish(keys["online"], rings=keys["rings"] if options.get("rings", True) else "")
    return repository


async def test_a_halted_policy_is_not_kept_as_the_former_one(make, write, keys, device):
    repository = await first(make, write, keys)
    repository.stage(write(2), keys["alice"])
    repository.publish(keys["online"], share=0.05, rings=keys["rings"])
    assert [name for name, _ in repository.in_force()] == ["policy.yaml", "former.yaml"]
    repository.halt(keys["online"], keys["rings"])
    repository.stage(write(3), keys["alice"])
    with pytest.raises(ConfigError, match="third policy"):
        repository.publish(keys["online"], share=0.5, rings=keys["rings"])
    repository.publish(keys["online"])
    former = json.loads((repository._folder / "metadata" / "3.targets.json").read_bytes())["signed"][
        "targets"
    ]
    assert {path: each["custom"]["epoch"] for path, each in former.items()} == {
        "policy.yaml": 3,
        "former.yaml": 1,
    }
    assert await device().epoch() == 3


async def test_a_renewal_with_the_key_for_rings_lets_no_further_device_in(make, write, keys, device):
    repository = await first(make, write, keys)
    repository.stage(write(2), keys["alice"])
    repository.publish(keys["online"], share=0.05, rings=keys["rings"])
    repository.publish(keys["online"], rings=keys["rings"])
    assert repository._share(repository.state()) == rings.Ring(2, 0.05)
    repository.halt(keys["online"], keys["rings"])
    repository.publish(keys["online"], rings=keys["rings"])
    assert repository._share(repository.state()) == rings.Ring(2, 0)
    assert await device().epoch() == 1


async def test_a_looser_policy_needs_two_officers_and_a_renewal_leaves_it(make, write, keys, device):
    repository = await first(make, write, keys)
    assert repository.stage(write(2), keys["alice"], looser=True, reason="why").threshold == 2
    with pytest.raises(ConfigError, match="1 of 2 officers"):
        repository.publish(keys["online"])
    assert repository.publish(keys["online"], renew=True) == 1
    assert repository.stage(None, keys["bob"]).signers == 2
    assert repository.publish(keys["online"], renew=True) == 1
    assert repository.publish(keys["online"]) == 2
    offer = await device().source.fetch()
    assert (offer.document.epoch, offer.signers) == (2, 2)


async def test_an_officer_who_is_dropped_leaves_a_repository_that_works(make, write, keys, device):
    """Alice alone signed what is published, so another officer signs it before devices hear of the next root."""
    repository, cars = await first(make, write, keys), device()
    assert await cars.epoch() == 1
    assert repository.rotate([keys["root"]], drop=[("targets", public(keys["alice"]))]) == 0
    repository.publish(keys["online"], renew=True)
    assert await device("before").epoch() == 1
    with pytest.raises(ConfigError, match="officers of the next root"):
        repository.publish(keys["online"])
    with pytest.raises(ConfigError, match="none of the role's keys"):
        repository.stage(None, keys["alice"])
    repository.stage(None, keys["bob"])
    repository.publish(keys["online"])
    assert await device("after").epoch() == 1
    assert len(repository._roots()) == 2
    repository.stage(write(2), keys["bob"])
    repository.publish(keys["online"])
    assert await cars.epoch() == 2


async def test_two_people_come_to_hold_the_root_and_one_is_replaced(make, write, keys, device, tmp_path):
    repository = make(rings=False)
    add, two = [("root", public(keys["root2"]))], [("root", 2)]
    assert repository.rotate([keys["root"]], add=add, thresholds=two) == 1
    assert repository.rotate([keys["root2"]]) == 0
    repository.stage(write(1), keys["alice"])
    repository.publish(keys["online"])
    assert await device().epoch() == 1
    change = {"add": [("root", public(keys["bob"]))], "drop": [("root", public(keys["root"]))]}
    assert (
        repository.rotate([keys["root2"], keys["bob"]], **change) == 1
    )  # The root before has two keys, too.
    assert repository.rotate([keys["root"]]) == 0
    assert len(repository._roots()) == 3
    with pytest.raises(ConfigError, match="none of the role's keys"):
        repository.rotate([keys["root"]])
    repository.publish(keys["online"])
    assert await device("new").epoch() == 1


async def test_the_key_for_rings_is_replaced(make, write, keys, device):
    repository = await first(make, write, keys)
    repository.stage(write(2), keys["alice"])
    repository.publish(keys["online"], share=0.05, rings=keys["rings"])
    repository.stage(None, keys["alice"], rings=public(keys["stranger"]))
    with pytest.raises(ConfigError, match="another key for rings"):
        repository.stage(None, keys["bob"], rings=public(keys["rings"]))
    for rings_key, match in (("", "the new key for rings"), (keys["rings"], "none of the role's keys")):
        with pytest.raises(ConfigError, match=match):
            repository.publish(keys["online"], rings=rings_key)
    repository.publish(keys["online"], rings=keys["stranger"])
    assert repository._share(repository.state()) == rings.Ring(2, 0.05)
    assert await placed(device(), 0.5).epoch() == 1
    with pytest.raises(ConfigError, match="none of the role's keys"):
        repository.halt(keys["online"], keys["rings"])
    repository.halt(keys["online"], keys["stranger"])


async def test_a_clock_that_is_behind_publishes_nothing(make, write, keys, monkeypatch):
    repository = await first(make, write, keys)
    monkeypatch.setitem(tuf_folder.DAYS, "timestamp", 6)
    with pytest.raises(ConfigError, match="clock"):
        repository.publish(keys["online"])


def kill_at(work, write):
    """Runs something in a process that dies before its n-th write. Returns False if it made fewer."""

    def run():
        count = 0

        def counted(real):
            def called(*arguments, **options):
                nonlocal count
                if count == write:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1
                real(*arguments, **options)

            return called

        files.write, files.create = counted(files.write), counted(files.create)
        work()

    pid, pipe = children.start(run)
    os.close(pipe)
    return os.waitpid(pid, 0)[1] == signal.SIGKILL


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        ("policy", [1, 1, 1, 1, 1, 2]),
        ("online key, with the old one", [1, 1, 1, 1, 1, 2, 2]),
        ("online key, without the old one", [1, 1, 1, 1, 1, 0, 2]),
    ],
)
async def test_a_publisher_that_dies_leaves_the_old_policy_or_the_new_one(
    make, write, keys, device, tmp_path, change, seen
):
    """`seen`: what a device reads that begins after the n-th write; 0 if it can't trust what it reads."""
    repository = await first(make, write, keys, rings=False)
    online, before = keys["online"], ""
    if change != "policy":
        roles, new, old = ("snapshot", "timestamp"), public(keys["stranger"]), public(keys["online"])
        add, drop = [(role, new) for role in roles], [(role, old) for role in roles]
        assert repository.rotate([keys["root"]], add=add, drop=drop) == 0
        online = keys["stranger"]
        before = keys["online"] if change.endswith("with the old one") else ""
    repository.stage(write(2), keys["alice"])
    folder, copy = tmp_path / "repo", shutil.copytree(tmp_path / "repo", tmp_path / "copy")
    for point, epoch in enumerate(seen):
        shutil.rmtree(folder)
        shutil.copytree(copy, folder)
        killed = kill_at(lambda: repository.publish(online, before=before), point)
        assert killed == (point < len(seen) - 1)
        try:
            assert await device(f"new-{point}").epoch() == epoch
        except (ConfigError, PolicyUnavailableError):
            assert epoch == 0
        if point in (2, 5) and killed:  # It goes on where it was killed.
            repository.publish(online, before="" if before and point == 5 and epoch == 0 else before)
            assert await device(f"again-{point}").epoch() == 2


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


@pytest.mark.parametrize("name", ["policy.yaml", "former.yaml", "ring.json"])
@pytest.mark.parametrize("content", [b"{", None])
def test_officers_notice_a_published_policy_or_ring_that_somebody_changed(
    make, write, keys, tmp_path, name, content
):
    repository = make()
    for epoch in (1, 2):
        repository.stage(write(epoch), keys["alice"])
        repository.publish(keys["online"], rings=keys["rings"])
    paths = list((tmp_path / "repo" / "targets").glob(f"*.{name}"))
    for path in paths:
        path.unlink() if content is None else path.write_bytes(content)
    for work in (
        lambda: repository.stage(write(3), keys["alice"]),
        lambda: repository.publish(keys["online"]),
        lambda: repository.halt(keys["online"], keys["rings"]),
        lambda: repository.rotate([keys["root"]]),
    ):
        with pytest.raises(
            ConfigError, match=rf"\.{name}: (is not what was signed: restore it|can't be read)"
        ):
            work()


def test_a_clone_without_the_empty_folders_is_a_repository(make, write, keys, tmp_path):
    repository = make()
    for name in ("staged", "targets"):
        (tmp_path / "repo" / name).rmdir()  # Git keeps no empty folders.
    repository.stage(write(1), keys["alice"])
    assert repository.publish(keys["online"], rings=keys["rings"]) == 1


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


def changed_delegations(signed, keys):
    signed.delegations = delegations(public(keys["stranger"]))


def changed_former(signed, keys):
    former = TargetFile.from_data("former.json", b'{"epoch": 1}')
    former.unrecognized_fields["custom"] = {"epoch": 1, "reason": "none"}
    signed.targets["former.json"] = former
    signed.targets.pop("former.yaml", None)


def changed_end(signed, keys):
    signed.expires = signed.expires.replace(year=9000)


def changed_more(signed, keys):
    signed.targets["other.json"] = TargetFile.from_data("other.json", b"{}")


@pytest.mark.parametrize("change", [changed_delegations, changed_former, changed_end, changed_more])
@pytest.mark.parametrize("published", [False, True])
def test_an_officer_signs_nothing_that_somebody_put_beside_the_policy_that_waits(
    make, write, keys, tmp_path, change, published
):
    repository = make(officer_threshold=2)
    if published:
        repository.stage(write(1), keys["alice"])
        repository.stage(None, keys["bob"])
        repository.publish(keys["online"], rings=keys["rings"])
    repository.stage(write(2), keys["alice"])
    path = tmp_path / "repo" / "staged" / "targets.json"
    good = path.read_bytes()
    metadata = Metadata.from_bytes(good)
    change(metadata.signed, keys)
    metadata.signatures.clear()
    path.write_bytes(metadata.to_bytes())
    for policy in (None, write(2)):
        with pytest.raises(ConfigError, match="another key for rings|somebody has changed it"):
            repository.stage(policy, keys["bob"])
    path.write_bytes(good)
    assert repository.stage(None, keys["bob"]).signers == 2


def test_what_is_published_can_be_read_whatever_the_umask_of_the_officer_is(make, write, keys, tmp_path):
    """A device takes a root that it may not read for one that is not there."""
    repository = make()
    before = os.umask(0o077)
    try:
        repository.stage(write(1), keys["alice"])
        repository.publish(keys["online"], rings=keys["rings"])
        repository.rotate([keys["root"]], drop=[("targets", public(keys["bob"]))])
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "repo" / "metadata").iterdir()}
    assert modes == {0o644}


def test_a_holder_of_the_root_signs_no_other_changes_than_asked_for(make, write, keys, tmp_path):
    repository = make(roots=("root", "root2"), root_threshold=2)
    repository.stage(write(1), keys["alice"])
    repository.publish(keys["online"], rings=keys["rings"])
    wanted = {"drop": [("targets", public(keys["bob"]))]}
    assert repository.rotate([keys["root"]], **wanted) == 2
    assert [line[:20] for line in repository.waiting_changes()] == ["targets: a key less:"]
    path = tmp_path / "repo" / "staged" / "root.json"
    good = path.read_bytes()
    metadata = Metadata.from_bytes(good)
    metadata.signed.add_key(public(keys["stranger"]), "targets")
    metadata.signatures.clear()
    path.write_bytes(metadata.to_bytes())
    assert len(repository.waiting_changes()) == 2
    with pytest.raises(ConfigError, match="another root waits"):
        repository.rotate([keys["root2"]], **wanted)
    for name, value in (("unrecognized_fields", {"x-dpmesh-fleet": "ships"}), ("expires", later(10**9))):
        metadata = Metadata.from_bytes(good)
        setattr(metadata.signed, name, value)
        path.write_bytes(metadata.to_bytes())
        with pytest.raises(ConfigError, match="more than keys was changed"):
            repository.rotate([keys["root2"]])
    path.write_bytes(good)
    assert repository.rotate([keys["root2"]], **wanted) == 0
