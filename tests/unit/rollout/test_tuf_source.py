"""TufSource on repositories in folders: what it offers, keeps and says."""

import hashlib
import hmac
import json
import logging
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from dpmesh import files
from dpmesh.config import load
from dpmesh.errors import ConfigError, PolicyUnavailableError
from dpmesh.rollout.source import State
from dpmesh.rollout.sources import open_source
from tests.support.tuf_repositories import Device, Repository, policy


async def test_it_offers_a_policy_once_and_then_the_next_one(repository, device):
    assert device.source.state is State.STALE
    first = await device.source.fetch()
    assert (first.document.epoch, first.content, first.signers) == (1, policy(1), 1)
    assert (first.not_before, first.reason, device.source.state) == (0, "", State.FRESH)
    assert await device.epoch() is None
    repository.add(policy(2), not_before=5, reason="less noise")
    repository.publish(targets_keys=repository.keys["targets"])
    second = await device.source.fetch()
    assert (second.document.epoch, second.signers, second.not_before, second.reason) == (
        2,
        2,
        5,
        "less noise",
    )
    assert await device.epoch() is None


async def test_a_second_signature_on_one_document_makes_another_offer(repository, device):
    assert (await device.source.fetch()).signers == 1
    repository.publish(targets_keys=repository.keys["targets"])
    assert (await device.source.fetch()).signers == 2


async def test_a_renewed_timestamp_offers_nothing(repository, device):
    assert await device.epoch() == 1
    repository.stamp()
    assert await device.epoch() is None
    assert device.source.state is State.FRESH


async def test_yaml_is_read_byte_for_byte(repository, device):
    content = b"# by the officers\nepoch: 2\nmode: ENFORCE\n"
    repository.targets.targets.clear()
    repository.add(content, path="policy.yaml", custom={"epoch": 2})
    repository.publish()
    offer = await device.source.fetch()
    assert (offer.content, offer.document.mode) == (content, 1)


async def test_without_a_network_it_offers_what_the_cache_has(repository, device):
    await device.epoch()
    repository.folder.rename(repository.folder.with_name("gone"))
    device.restart()
    assert (await device.source.fetch()).content == policy(1)
    assert device.source.state is State.STALE
    assert "no such file" in await device.refusal(PolicyUnavailableError)
    repository.folder.with_name("gone").rename(repository.folder)
    assert await device.epoch() is None
    assert device.source.state is State.FRESH


async def test_a_new_device_without_a_network_has_nothing(repository, device):
    repository.folder.rename(repository.folder.with_name("gone"))
    await device.refusal(PolicyUnavailableError)
    assert device.source.state is State.STALE


async def test_an_offer_can_be_restored_without_a_network_however_old(repository, device):
    offer = await device.source.fetch()
    with pytest.raises(PolicyUnavailableError, match="has taken no policy of it yet"):
        device.source.first()
    device.source.keep(offer)
    repository.folder.rename(repository.folder.with_name("gone"))
    device.skew = 10 * 365 * 86400
    device.restart()
    assert device.source.first() == [replace(offer, taken=True)]
    for damaged in (offer.kept[:-9], b"{}", b"", offer.kept.replace(b"policy.json", b"former.json")):
        device.source.keep(replace(offer, kept=damaged))
        with pytest.raises(PolicyUnavailableError, match="can't be trusted"):
            device.source.first()
    device.source.keep(offer)
    device.restart(floor=2)
    with pytest.raises(PolicyUnavailableError, match="older than the policy of the image"):
        device.source.first()


async def test_two_processes_share_a_cache(repository, device, tmp_path):
    other = Device(tmp_path / "device", repository)
    assert (await device.epoch(), await other.epoch()) == (1, 1)
    repository.add(policy(2))
    repository.publish()
    assert (await device.epoch(), await other.epoch()) == (2, 2)
    repository.folder.rename(repository.folder.with_name("gone"))
    for each in (device, other):
        each.restart()
        assert await each.epoch() == 2


async def test_a_new_root_is_followed_even_if_the_timestamp_is_unchanged(repository, device):
    await device.epoch()
    repository.new_keys("root")
    assert await device.epoch() is None
    repository.new_keys("timestamp", "snapshot", "targets")
    repository.add(policy(2))
    repository.publish()
    assert await device.epoch() == 2
    device.restart()
    repository.folder.rename(repository.folder.with_name("gone"))
    assert await device.epoch() == 2


async def test_an_image_with_a_newer_root_takes_over_the_cache(repository, device):
    for _ in range(3):
        repository.new_keys("root")
    repository.publish()
    await device.epoch()
    for version in (1, 3, 4):
        repository.path(f"{version}.root.json").unlink()
    device.restart(root=repository.read("2.root.json"))
    repository.folder.rename(repository.folder.with_name("gone"))
    assert await device.epoch() == 1


async def test_what_was_refused_is_refused_again_without_a_download(repository, device):
    repository.add(policy(3), custom={"epoch": 2})
    repository.publish()
    text = await device.refusal(ConfigError)
    assert device.source.state is State.FRESH
    assert "has epoch 3, and its officers signed epoch 2" in text
    (repository.folder / "targets").rename(repository.folder / "other")
    assert text == await device.refusal(ConfigError)


def opened(url, root, folder):
    """The source of a configuration."""
    policy = {"source": url, "cache": str(folder / "cache"), **({} if root is None else {"root": str(root)})}
    return open_source(load({"policy": policy}, {}), floor=0, clock=time.time)[0]


async def test_a_policy_is_offered_again_after_an_answer_that_could_not_be_taken(repository, device):
    """Whoever held it has dropped it then."""
    assert await device.epoch() == 1
    stamp = repository.read("timestamp.json")
    repository.write("timestamp.json", b"{")
    await device.refusal(ConfigError)
    repository.write("timestamp.json", stamp)
    assert await device.epoch() == 1
    assert await device.epoch() is None


async def test_an_offer_of_the_cache_is_stale_even_if_the_repository_answers(repository, device):
    """The newer policy can't be taken, so nobody may say that the older one is the newest."""
    await device.epoch()
    repository.add(policy(3), custom={"epoch": 2})
    repository.publish()
    device.restart()
    assert await device.epoch() == 1
    assert device.source.state is State.STALE
    await device.refusal(ConfigError)
    assert device.source.state is State.FRESH


class TestRings:
    def cohort(self, device, epoch):
        secret = (device.cache / "device-secret").read_bytes()
        message = b"dpmesh rollout" + epoch.to_bytes(8, "big")
        return int.from_bytes(hmac.new(secret, message, hashlib.sha256).digest()[:8], "big") / 2**64

    async def test_a_device_waits_until_the_ring_has_grown_to_it(self, repository, device):
        repository.ring(1, 0)
        repository.publish()
        assert await device.epoch() is None
        assert device.source.state is State.FRESH
        share = self.cohort(device, 1)
        for part, epoch in ((share * 0.999, None), (share * 1.001, 1), (1, None)):
            repository.ring(1, part)
            repository.publish()
            assert await device.epoch() == epoch

    async def test_all_devices_are_in_a_ring_of_one_and_in_those_of_other_epochs(self, repository, device):
        repository.ring(1, 1)
        repository.publish()
        assert await device.epoch() == 1
        repository.add(policy(2))
        repository.publish()
        assert await device.epoch() == 2

    async def test_a_device_that_has_taken_an_epoch_keeps_it_when_the_ring_shrinks(self, repository, device):
        await device.epoch()
        repository.add(policy(1), path="former.json")
        repository.add(policy(2))
        repository.ring(2, 1)
        repository.publish()
        assert await device.epoch(takes=True) == 2
        repository.ring(2, 0)
        repository.publish()
        assert await device.epoch() is None
        device.restart()
        assert await device.epoch() == 2

    async def test_a_device_that_has_not_taken_an_epoch_loses_it_when_the_ring_shrinks(
        self, repository, device
    ):
        await device.epoch(takes=True)
        repository.add(policy(1), path="former.json")
        repository.add(policy(2))
        repository.ring(2, 1)
        repository.publish()
        for _ in range(2):
            assert await device.epoch() == 2
            repository.ring(2, 0)
            repository.publish()
            assert "for this device no more" in await device.refusal(ConfigError)
            assert device.source.state is State.FRESH
            repository.ring(2, 1)
            repository.publish()
        assert await device.epoch() == 2
        repository.ring(2, 0)
        repository.publish()
        await device.refusal(ConfigError)
        for _ in range(2):
            device.restart()
            assert await device.epoch() is None

    async def test_devices_outside_take_the_former_policy(self, repository, device):
        repository.add(policy(1), path="former.json")
        repository.add(policy(2))
        repository.ring(2, 0)
        repository.publish()
        offer = await device.source.fetch()
        assert offer.content == policy(1)
        device.source.keep(offer)
        assert device.source.first() == [replace(offer, taken=True)]
        repository.ring(2, 1)
        repository.publish()
        assert await device.epoch() == 2

    async def test_a_former_policy_that_is_no_former_one_is_refused(self, repository, device):
        repository.add(policy(2), path="former.json")
        repository.ring(1, 0)
        repository.publish()
        assert "the former policy has epoch 2, and the newest 1" in await device.refusal(ConfigError)

    async def test_rings_of_two_epochs_have_other_devices(self, tmp_path, repository):
        """Of 200 devices, 100 are in each ring, and 50 in both: the chance of 85 or more is below 1e-20."""
        from dpmesh.rollout import rings

        secrets = [number.to_bytes(32, "big") for number in range(200)]
        inside = [{s for s in secrets if rings.Ring(epoch, 0.5).has(s)} for epoch in (1, 2)]
        assert all(60 < len(each) < 140 for each in inside)
        assert len(inside[0] & inside[1]) < 85

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"{}",
            b'{"epoch": 1, "share": 1.01}',
            b'{"epoch": 1, "share": -0.1}',
            b'{"epoch": 1, "share": NaN}',
            b'{"epoch": 1, "share": "1"}',
            b'{"epoch": true, "share": 1}',
            b"[1, 1]",
        ],
    )
    async def test_what_is_no_ring_lets_nobody_in(self, repository, device, content):
        repository.ring(1, 1, content)
        repository.publish()
        assert "is no ring" in await device.refusal(ConfigError)


class TestBadInput:
    @pytest.mark.parametrize(
        ("custom", "says"),
        [
            ({}, "signed no epoch"),
            ({"epoch": "1"}, "signed no epoch"),
            ({"epoch": True}, "signed no epoch"),
            ({"epoch": 1, "not_before": "soon"}, "signed no epoch"),
            ({"epoch": 1, "reason": 5}, "signed no epoch"),
            ({"epoch": 2}, "has epoch 1, and its officers signed epoch 2"),
        ],
    )
    async def test_what_the_officers_say_beside_the_document_has_to_fit(
        self, repository, device, custom, says
    ):
        repository.add(policy(1), custom=custom)
        repository.publish()
        assert says in await device.refusal(ConfigError)

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            (b"\xff\xfe", "policy.json"),
            (b'{"epoch": 1, "surprise": 1}', "surprise"),
            (b"[]", "policy.json"),
            (b'{"epoch": 0}', "has epoch 0"),
            (b'{"epoch": 1, "version": "' + b"x" * 256_000 + b'"}', "larger than 256 kB"),
        ],
    )
    async def test_a_document_that_is_no_policy_is_refused(self, repository, device, content, says):
        repository.add(content, custom={"epoch": 0 if b": 0" in content else 1})
        repository.publish()
        assert says in await device.refusal(ConfigError)

    async def test_a_repository_without_a_policy_or_with_two_is_refused(self, repository, device):
        repository.add(b"epoch: 1", path="policy.yaml", custom={"epoch": 1})
        repository.publish()
        assert "two targets named policy" in await device.refusal(ConfigError)
        repository.targets.targets.clear()
        repository.publish()
        assert "no policy in it" in await device.refusal(ConfigError)

    async def test_a_policy_below_the_floor_is_refused(self, repository, device):
        device.restart(floor=2)
        assert "its epoch 1 is below that of the image's policy, 2" in await device.refusal(ConfigError)
        repository.add(policy(2))
        repository.publish()
        assert await device.epoch() == 2

    async def test_epochs_do_not_go_back_and_have_one_content(self, repository, device):
        repository.add(policy(3))
        repository.publish()
        assert await device.epoch() == 3
        repository.add(policy(2))
        repository.publish()
        assert "its epoch 2 is below that of an earlier policy, 3" in await device.refusal(ConfigError)
        repository.add(policy(3, mode="OBSERVE"))
        repository.publish()
        assert "it has the epoch of an earlier policy, 3, and another content" in await device.refusal(
            ConfigError
        )
        repository.add(policy(4))
        repository.publish()
        assert await device.epoch() == 4

    @pytest.mark.parametrize("damage", [b"", b"{}", b"\xff" * 100, b'{"signed": 1}'])
    async def test_a_damaged_cache_counts_as_empty(self, device, damage, caplog):
        await device.epoch()
        (device.cache / "signed.json").write_bytes(damage)
        device.restart()
        assert "counts as missing" in caplog.text
        assert await device.epoch() == 1
        caplog.clear()
        device.restart()
        assert not caplog.text

    async def test_a_cache_that_others_may_read_counts_as_empty(self, device, caplog):
        await device.epoch()
        (device.cache / "signed.json").chmod(0o644)
        device.restart()
        assert "NotPrivateError" in caplog.text

    async def test_the_cache_cannot_be_a_file(self, repository, device):
        device.cache.parent.mkdir()
        device.cache.write_bytes(b"")
        device.restart()
        assert "its cache" in await device.refusal(PolicyUnavailableError)

    @pytest.mark.parametrize(
        "url",
        [
            "http://host/path",
            "ftp://host",
            "file://host/path",
            "file:relative",
            "https:///path",
            "host",
            "",
            "https://user:word@host/",
            "https://host/?q=1",
            "https://host/#part",
            "https://host:99999/",
        ],
    )
    def test_other_urls_are_refused(self, tmp_path, repository, url):
        (tmp_path / "root.json").write_bytes(repository.image)
        with pytest.raises(ConfigError, match="policy.source"):
            opened(f"tuf+{url}", tmp_path / "root.json", tmp_path)
        if "://" in url:
            with pytest.raises(ConfigError, match="policy.source"):
                opened(url, tmp_path / "root.json", tmp_path)

    def test_the_image_has_to_have_a_root(self, tmp_path, repository):
        url = f"tuf+file://{repository.folder}"
        for root, says in (
            (None, "needs it"),
            (tmp_path / "missing", "can't be read"),
            (tmp_path, "can't be read"),
        ):
            with pytest.raises(ConfigError, match=f"policy.root.*{says}"):
                opened(url, root, tmp_path)
        nameless = Repository(tmp_path / "nameless", fleet="")
        unsigned = json.loads(repository.image)
        unsigned["signatures"] = []
        bad = (
            (b"", "is no metadata"), (b"{}", "is no metadata"), (repository.read("timestamp.json"), "another kind"),
            (nameless.image, "names no fleet"), (json.dumps(unsigned).encode(), "0 of 1 keys signed it"),
        )  # fmt: skip
        for content, says in bad:
            (tmp_path / "root.json").write_bytes(content)
            with pytest.raises(ConfigError, match=f"policy.root.*{says}"):
                opened(url, tmp_path / "root.json", tmp_path)

    async def test_it_opens_from_a_file(self, tmp_path, repository):
        (tmp_path / "root.json").write_bytes(repository.image)
        source = opened(f"tuf+file://{repository.folder}", tmp_path / "root.json", tmp_path)
        assert (await source.fetch()).document.epoch == 1

    def test_without_the_extra_it_says_what_to_install(self):
        code = (
            "import sys; sys.modules['tuf'] = None\n"
            "import dpmesh\n"
            "try: dpmesh.open({'policy': {'source': 'tuf+file:///x', 'root': 'x'}})\n"
            "except Exception as error: print(type(error).__name__, error)"
        )
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert said.startswith("ConfigError")
        assert ".[policy]" in said

    async def test_python_tuf_logs_no_keys(self, device, caplog):
        with caplog.at_level(logging.DEBUG, logger="root"):
            await device.epoch()
        assert not [each for each in caplog.records if each.name.startswith(("tuf", "securesystemslib"))]


@pytest.mark.parametrize("attribute", ["skew", "slept"])
async def test_a_refused_set_that_is_shown_for_ever_gets_old(repository, device, attribute):
    """Its officers may have published a good one since."""
    assert await device.epoch() == 1
    repository.add(policy(3), custom={"epoch": 2})
    repository.publish(expires=3600)
    await device.refusal(ConfigError)
    setattr(device, attribute, 3500.0)
    await device.refusal(ConfigError)
    assert device.source.state is State.FRESH
    setattr(device, attribute, 3601.0)
    assert "too old" in await device.refusal(PolicyUnavailableError)
    assert device.source.state is State.STALE
    repository.add(policy(4))
    repository.publish(expires=7200)
    assert await device.epoch() == 4


def test_an_error_about_a_url_does_not_quote_its_password(repository, device):
    with pytest.raises(ConfigError, match="may have no user") as error:
        device.restart(url="https://officer:hunter2@policies.example/fleet")
    assert "hunter2" not in str(error.value)


async def test_a_slow_download_of_another_process_does_not_keep_this_one_from_the_cache(repository, device):
    offer = await device.source.fetch()
    repository.stamp()
    began = time.monotonic()
    with files.locked_folder(device.cache / "download"):
        device.source.keep(offer)
        device.restart()
        assert device.source.first()[0].content == offer.content
    assert time.monotonic() - began < files.LONGEST_WAIT / 2


async def test_a_device_knows_that_it_has_taken_what_it_can_not_believe_any_more(repository, device):
    assert not device.source.has_taken()
    await device.epoch(takes=True)
    device.restart(floor=2)
    with pytest.raises(PolicyUnavailableError):
        device.source.first()
    assert device.source.has_taken()
