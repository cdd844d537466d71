"""Attacks on a signed repository of policies, each accepted no time.

An attacker stands between the repository and the device and serves what it likes. In some tests it has stolen keys too.
After each attack the device goes on with what it had: also a process that starts with its cache alone.
"""

import json
import os
from copy import deepcopy

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Key, Metadata, MetaFile, Snapshot, Timestamp

from dpmesh.errors import ConfigError, PolicyUnavailableError
from dpmesh.rollout import tuf_download
from dpmesh.rollout.source import State
from tests.support.tuf_repositories import ROLES, Device, Repository, later, policy

DAY = 86400


@pytest.fixture
async def attacked(repository, device):
    """A device that has taken epoch 2 of a repository."""
    repository.add(policy(2))
    repository.publish()
    assert await device.epoch(takes=True) == 2
    return device


async def held(device, epoch=2, error=(ConfigError, PolicyUnavailableError)) -> str:
    """Why the device refuses. After a restart it has an epoch from its cache, as it had before."""
    text = await device.refusal(error)
    device.restart()
    assert await device.epoch() == epoch
    return text


def stolen(repository, signed, role, name):
    """Lets an attacker sign a file with a role's key, and serves it."""
    return repository.write(name, repository.signed(signed, repository.keys[role][:1]))


def snapshot(repository, version, targets, **more):
    meta = {"targets.json": MetaFile(targets)} | more
    return Snapshot(version, expires=later(DAY), meta=meta)


def timestamp(version, snapshot_version):
    return Timestamp(version, expires=later(DAY), snapshot_meta=MetaFile(snapshot_version))


class TestRollback:
    async def test_of_the_timestamp(self, repository, device):
        old = repository.read("timestamp.json")
        repository.add(policy(2))
        repository.publish()
        assert await device.epoch() == 2
        repository.write("timestamp.json", old)
        assert "BadVersionNumberError" in await held(device, error=ConfigError)
        assert device.source.state is State.STALE

    async def test_of_the_snapshot_with_the_timestamps_key(self, repository, attacked):
        stolen(repository, timestamp(9, 1), "timestamp", "timestamp.json")
        assert "BadVersionNumberError" in await held(attacked, error=ConfigError)

    async def test_of_the_targets_with_the_keys_of_timestamp_and_snapshot(self, repository, attacked):
        stolen(repository, snapshot(repository, 9, 1), "snapshot", "9.snapshot.json")
        stolen(repository, timestamp(9, 9), "timestamp", "timestamp.json")
        assert "BadVersionNumberError" in await held(attacked, error=ConfigError)

    async def test_of_the_root(self, repository, attacked):
        repository.new_keys("root")
        repository.stamp()
        assert await attacked.epoch() is None
        repository.write("3.root.json", repository.read("2.root.json"))
        assert "BadVersionNumberError" in await held(attacked, error=ConfigError)

    async def test_of_everything_to_a_device_with_a_wiped_cache_stops_at_the_floor(
        self, repository, tmp_path
    ):
        old = {path: path.read_bytes() for path in repository.folder.rglob("*.json")}
        repository.add(policy(2))
        repository.publish()
        for path, content in old.items():
            path.write_bytes(content)
        device = Device(tmp_path / "new", repository)
        device.restart(floor=2)
        assert "below that of the image's policy" in await device.refusal(ConfigError)

    async def test_of_the_cache_while_a_process_runs(self, repository, device):
        await device.epoch()
        old = (device.cache / "signed.json").read_bytes()
        repository.add(policy(2))
        repository.publish()
        assert await device.epoch() == 2
        (device.cache / "signed.json").write_bytes(old)
        repository.add(policy(1))
        repository.publish()
        assert "below that of an earlier policy" in await device.refusal(ConfigError)

    async def test_by_the_officers_without_a_new_epoch(self, repository, attacked):
        repository.add(policy(1))
        repository.publish()
        assert "below that of an earlier policy" in await held(attacked, error=ConfigError)


class TestFreeze:
    async def test_the_last_timestamp_ends(self, repository, attacked):
        attacked.skew = DAY - 60
        assert await attacked.epoch() is None
        assert attacked.source.state is State.FRESH
        attacked.skew = DAY + 60
        assert "too old" in await held(attacked, error=PolicyUnavailableError)
        assert attacked.source.state is State.STALE

    async def test_a_clock_that_is_set_back_does_not_make_it_fresh_again(self, repository, attacked):
        attacked.skew = DAY + 60
        await attacked.refusal(PolicyUnavailableError)
        attacked.skew = -DAY
        assert "too old" in await held(attacked, error=PolicyUnavailableError)

    async def test_a_clock_that_stands_still_does_not_keep_it_fresh(self, repository, attacked):
        attacked.slept = DAY + 60
        assert "too old" in await attacked.refusal(PolicyUnavailableError)

    @pytest.mark.parametrize("role", ["snapshot", "targets"])
    async def test_older_files_end_too(self, repository, attacked, role):
        repository.add(policy(3))
        repository.publish(stale={role: 1800})
        attacked.skew = 3600
        assert "too old" in await held(attacked, error=PolicyUnavailableError)
        repository.publish(stale={"snapshot": DAY, "targets": DAY})
        attacked.skew = 0
        assert await attacked.epoch() == 3

    @pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
    async def test_what_has_ended_is_not_taken(self, repository, attacked, role):
        repository.add(policy(3))
        repository.publish(expires=-60 if role == "timestamp" else DAY, stale={role: -60})
        assert "too old" in await held(attacked, error=PolicyUnavailableError)

    async def test_a_root_that_has_ended_is_not_taken(self, repository, attacked):
        repository.root.expires = later(-60)
        repository.new_keys("root")
        repository.stamp()
        assert "too old" in await held(attacked, error=PolicyUnavailableError)


class TestClock:
    async def test_a_day_ahead(self, repository, attacked):
        repository.add(policy(3))
        repository.publish(expires=DAY - 60)
        attacked.skew = DAY
        assert "too old" in await held(attacked, error=PolicyUnavailableError)
        attacked.skew = 0
        assert "too old" in await held(attacked, error=PolicyUnavailableError)
        repository.publish(expires=DAY + 60)
        assert await attacked.epoch() == 3

    async def test_years_ahead_once_ends_one_timestamp_and_no_later_one(self, repository, attacked):
        attacked.skew = 12 * 365 * DAY
        await held(attacked, error=PolicyUnavailableError)
        attacked.skew = 0
        assert "too old" in await held(attacked, error=PolicyUnavailableError)
        repository.add(policy(3))
        repository.publish(expires=DAY + 60)
        assert await attacked.epoch() == 3
        assert attacked.source.state is State.FRESH

    async def test_a_day_behind(self, repository, device):
        """The device has seen a later time, so a timestamp that ended before that time is too old."""
        repository.publish(expires=3 * DAY)
        device.skew = 2 * DAY
        await device.epoch()
        device.skew = 0
        repository.add(policy(2))
        repository.publish(expires=1.5 * DAY)
        assert "too old" in await held(device, 1, PolicyUnavailableError)
        repository.publish(expires=4 * DAY)
        assert await device.epoch() == 2
        repository.stamp(expires=1.5 * DAY)
        assert "too old" in await held(device, 2, PolicyUnavailableError)

    async def test_time_counts_without_a_new_timestamp(self, repository, device):
        """The time that goes on is written down, so a restart with a clock of before does not make it fresh."""
        repository.publish(expires=3 * DAY)
        await device.epoch()
        device.skew = 2 * DAY
        assert await device.epoch() is None
        device.skew = 0
        device.restart()
        repository.stamp(expires=1.5 * DAY)
        assert await device.epoch() == 1
        assert device.source.state is State.STALE
        assert "too old" in await held(device, 1, PolicyUnavailableError)


class TestFastForward:
    async def test_with_the_keys_of_timestamp_and_snapshot_a_new_root_recovers(self, repository, attacked):
        far = 2**31
        forged = snapshot(repository, far, 2)
        forged.expires = later(80 * DAY)
        stolen(repository, forged, "snapshot", f"{far}.snapshot.json")
        late = Timestamp(far, expires=later(50 * 365 * DAY), snapshot_meta=MetaFile(far))
        stolen(repository, late, "timestamp", "timestamp.json")
        attacked.skew = 70 * DAY  # So that a time far ahead counts as seen.
        assert await attacked.epoch() is None
        assert attacked.source.state is State.FRESH
        attacked.skew = 0
        repository.add(policy(3))
        repository.publish()
        assert "BadVersionNumberError" in await attacked.refusal(ConfigError)
        repository.new_keys("timestamp", "snapshot")
        repository.publish()
        assert await attacked.epoch() == 3
        attacked.restart()
        assert await attacked.epoch() == 3

    async def test_of_the_epoch_with_a_targets_key_the_officers_go_on_above_it(self, repository, attacked):
        thief = repository.keys["targets"][:1]
        repository.add(policy(2**64 - 1))
        repository.publish(targets_keys=thief)
        assert "above the one before" in await held(attacked, error=ConfigError)
        repository.add(policy(10**14 + 2))
        repository.publish(targets_keys=thief)
        assert await attacked.epoch() == 10**14 + 2
        repository.new_keys("targets")
        repository.add(policy(10**14 + 3))
        repository.publish()
        assert await attacked.epoch() == 10**14 + 3
        repository.add(policy(10**14 + 4))
        repository.publish(targets_keys=thief)
        assert "UnsignedMetadataError" in await held(attacked, 10**14 + 3, ConfigError)


class TestMixAndMatch:
    async def test_older_targets_under_a_newer_name(self, repository, attacked):
        repository.add(policy(3))
        repository.publish()
        repository.write("3.targets.json", repository.read("1.targets.json"))
        assert "BadVersionNumberError" in await held(attacked, error=ConfigError)

    async def test_an_older_snapshot_under_a_newer_name(self, repository, attacked):
        repository.add(policy(3))
        repository.publish()
        repository.write("3.snapshot.json", repository.read("2.snapshot.json"))
        assert "BadVersionNumberError" in await held(attacked, error=ConfigError)

    async def test_another_document_under_a_signed_name(self, repository, attacked):
        repository.add(policy(3))
        repository.publish()
        target = repository.targets.targets["policy.json"]
        repository.write_target(target, policy(4))
        assert "LengthOrHashMismatchError" in await held(attacked, error=ConfigError)

    async def test_one_kind_of_file_for_another(self, repository, attacked):
        repository.write("timestamp.json", repository.read("2.snapshot.json"))
        assert await held(attacked, error=ConfigError)

    async def test_the_policy_is_taken_for_no_ring_and_the_ring_for_no_policy(self, repository, attacked):
        repository.ring(3, 1)
        repository.rings.targets["policy.json"] = repository.rings.targets["ring.json"]
        repository.targets.targets.clear()
        repository.targets.delegations.roles["rings"].paths = ["*"]
        repository.publish()
        assert "no policy in it" in await held(attacked, error=ConfigError)


class TestKeys:
    @pytest.mark.parametrize("role", ["targets", "snapshot", "timestamp"])
    async def test_a_key_that_the_root_does_not_name(self, repository, attacked, role):
        repository.keys[role] = [CryptoSigner.generate_ed25519()]
        repository.add(policy(3))
        repository.publish()
        assert "UnsignedMetadataError" in await held(attacked, error=ConfigError)

    @pytest.mark.parametrize("role", ["targets", "snapshot", "timestamp"])
    async def test_the_key_of_another_role(self, repository, attacked, role):
        repository.keys[role] = repository.keys["timestamp" if role == "targets" else "targets"]
        repository.add(policy(3))
        repository.publish()
        assert "UnsignedMetadataError" in await held(attacked, error=ConfigError)

    async def test_a_root_that_the_root_before_did_not_sign(self, repository, attacked):
        old = repository.keys["root"]
        repository.new_keys("root")
        repository.keys["root"] = [key for key in repository.keys["root"] if key not in old]
        repository.write_root()
        repository.stamp()
        assert "UnsignedMetadataError" in await held(attacked, error=ConfigError)

    @pytest.mark.parametrize("role", ROLES)
    async def test_a_threshold_short_by_one(self, repository, attacked, role):
        repository.root.roles[role].threshold = 3
        repository.root.add_key(CryptoSigner.generate_ed25519().public_key, role)
        if role == "root":
            repository.root.version += 1
            repository.write_root()
        else:
            repository.next_root()
        repository.add(policy(3))
        repository.publish(targets_keys=repository.keys["targets"])
        assert "UnsignedMetadataError" in await held(attacked, error=ConfigError)

    @pytest.mark.parametrize("role", ["targets", "snapshot", "timestamp"])
    @pytest.mark.parametrize("form", [str, str.upper])
    async def test_one_key_under_two_ids_counts_once(self, repository, attacked, role, form):
        mine = repository.keys[role][0]
        public = deepcopy(mine.public_key.to_dict())
        public["keyval"]["public"] = form(public["keyval"]["public"])
        twin = Key.from_dict("0" * 64, public)
        repository.root.add_key(twin, role)
        repository.root.roles[role].threshold = 2
        repository.next_root()

        def sign_twice(name):
            metadata = Metadata.from_bytes(repository.read(name))
            metadata.signatures.clear()
            signature = metadata.sign(mine).to_dict()
            raw = json.loads(metadata.to_bytes())
            raw["signatures"].append(signature | {"keyid": twin.keyid})
            repository.write(name, json.dumps(raw).encode())

        repository.add(policy(3))
        repository.publish(targets_keys=repository.keys["targets"])
        sign_twice(
            {"targets": "3.targets.json", "snapshot": "3.snapshot.json", "timestamp": "timestamp.json"}[role]
        )
        assert f"{role}: 1 of 2 keys signed it" in await held(attacked, error=ConfigError)

    async def test_one_key_under_two_ids_is_one_signer(self, repository, device):
        mine = repository.keys["targets"][0]
        twin = Key.from_dict("1" * 64, mine.public_key.to_dict())
        repository.root.add_key(twin, "targets")
        repository.next_root()
        repository.publish()
        raw = json.loads(repository.read("2.targets.json"))
        raw["signatures"].append(raw["signatures"][0] | {"keyid": twin.keyid})
        repository.write("2.targets.json", json.dumps(raw).encode())
        assert (await device.source.fetch()).signers == 1

    async def test_officers_can_have_keys_of_other_kinds(self, repository, attacked):
        key = CryptoSigner.generate_ecdsa()
        repository.root.add_key(key.public_key, "targets")
        repository.next_root()
        repository.add(policy(3))
        repository.publish(targets_keys=[key, repository.keys["targets"][0]])
        assert (await attacked.source.fetch()).signers == 2


class TestFleets:
    async def test_a_root_of_another_fleet(self, repository, attacked):
        repository.root.unrecognized_fields["x-dpmesh-fleet"] = "trucks"
        repository.new_keys("timestamp")
        repository.add(policy(3))
        repository.publish()
        assert "a root belongs to another fleet" in await held(attacked, error=ConfigError)

    async def test_a_root_without_a_fleet(self, repository, attacked):
        repository.root.unrecognized_fields.clear()
        repository.next_root()
        assert "a root belongs to another fleet" in await held(attacked, error=ConfigError)

    async def test_the_repository_of_another_fleet(self, repository, attacked, tmp_path):
        other = Repository(tmp_path / "other", fleet="trucks")
        other.add(policy(3))
        for _ in range(3):
            other.publish()
        for path in other.folder.rglob("*.json"):
            (repository.folder / path.relative_to(other.folder)).write_bytes(path.read_bytes())
        assert "UnsignedMetadataError" in await held(attacked, error=ConfigError)


class TestGarbage:
    NAMES = (
        "timestamp.json",
        "3.snapshot.json",
        "3.targets.json",
        "3.rings.json",
        "policy.json",
        "ring.json",
    )

    @pytest.fixture
    def paths(self, repository, attacked):
        repository.add(policy(3))
        repository.ring(3, 1)
        repository.rings.version = 2
        repository.publish()
        metadata, targets = repository.folder / "metadata", repository.folder / "targets"
        documents = {
            path: targets / f"{role.targets[path].hashes['sha256']}.{path}"
            for role, path in ((repository.targets, "policy.json"), (repository.rings, "ring.json"))
        }
        return {name: documents.get(name, metadata / name) for name in self.NAMES}

    @pytest.mark.parametrize(
        ("name", "kind"),
        [(name, kind) for name in NAMES for kind in ("half", "missing")]
        + [
            (name, kind)
            for name in NAMES[::4]
            for kind in ("empty", "random", "deep", "long", "html", "folder")
        ],
    )
    async def test_in_place_of_each_file(self, attacked, paths, name, kind):
        path = paths[name]
        content = path.read_bytes()
        path.unlink()
        if kind == "folder":
            path.mkdir()
        elif kind != "missing":
            path.write_bytes(
                {
                    "half": content[: len(content) // 2],
                    "empty": b"",
                    "random": bytes(range(256)) * 20,
                    "deep": b"[" * 200_000,
                    "long": b'{"signed": {"version": ' + b"9" * 250_000 + b"}}",
                    "html": b"<html>please log in to the hotel's network</html>",
                }[kind]
            )
        await held(attacked)

    @pytest.mark.parametrize("content", [b"", b"{}", b"[" * 100_000, b"\xff" * 100])
    async def test_in_place_of_the_next_root(self, repository, attacked, content):
        repository.write("2.root.json", content)
        assert await held(attacked, error=ConfigError)

    async def test_a_file_that_does_not_end(self, repository, attacked):
        repository.path("timestamp.json").unlink()
        with open(repository.path("timestamp.json"), "wb") as file:
            file.truncate(10 << 30)
        assert "DownloadLengthMismatchError" in await held(attacked, error=ConfigError)

    async def test_a_pipe_that_nobody_writes_to(self, repository, attacked):
        repository.path("timestamp.json").unlink()
        os.mkfifo(repository.path("timestamp.json"))
        assert "no regular file" in await held(attacked, error=PolicyUnavailableError)


class TestRings:
    async def test_a_ring_with_the_wrong_key(self, repository, attacked):
        repository.ring(3, 1)
        repository.keys["rings"] = repository.keys["timestamp"]
        repository.add(policy(3))
        repository.publish()
        assert "UnsignedMetadataError" in await held(attacked, error=ConfigError)

    async def test_another_ring_under_its_name(self, repository, attacked, tmp_path):
        repository.add(policy(3))
        repository.ring(3, 0)
        repository.publish()
        assert await attacked.epoch() is None
        content = b'{"epoch": 3, "share": 1}'
        assert len(content) == repository.rings.targets["ring.json"].length
        repository.write_target(repository.rings.targets["ring.json"], content)
        assert await attacked.epoch() is None
        assert "LengthOrHash" in await Device(tmp_path / "new", repository).refusal(ConfigError)

    async def test_a_larger_ring_of_before(self, repository, attacked):
        """A halt can't be undone by the ring before it."""
        repository.add(policy(3))
        repository.ring(3, 0.5)
        repository.publish()
        large = {path: path.read_bytes() for path in repository.folder.rglob("*.json")}
        repository.ring(3, 0)
        repository.publish()
        await attacked.epoch()
        for path, content in large.items():
            path.write_bytes(content)
        assert "BadVersionNumberError" in await attacked.refusal(ConfigError)

    async def test_the_rings_key_signs_no_policy(self, repository, attacked):
        repository.ring(3, 1)
        thief = repository.keys["rings"]
        repository.add(policy(3))
        repository.publish(targets_keys=thief)
        assert "UnsignedMetadataError" in await held(attacked, error=ConfigError)


class TestRoots:
    """tests/faults/test_policy_repositories.py follows 256 roots."""

    @pytest.fixture(autouse=True)
    def at_most_five(self, monkeypatch):
        monkeypatch.setattr(tuf_download._LIMITS, "max_root_rotations", 5)

    async def test_a_chain_of_roots_is_followed_and_kept(self, repository, device):
        for _ in range(5):
            repository.new_keys("root")
        assert await device.epoch() == 1
        repository.folder.rename(repository.folder.with_name("gone"))
        device.restart()
        assert await device.epoch() == 1

    async def test_a_longer_chain_is_not(self, repository, device):
        """Devices with an image that old need a newer one: the work of a device has a bound."""
        for _ in range(5):
            repository.next_root()
        repository.new_keys("timestamp")
        repository.stamp()
        assert await device.refusal(ConfigError)
        device.restart(root=repository.read("2.root.json"))
        assert await device.epoch() == 1
