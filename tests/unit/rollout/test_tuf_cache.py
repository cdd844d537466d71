"""The cache of a repository: processes that are killed, a full disk, several processes."""

import asyncio
import errno
import os

from dpmesh.errors import PolicyUnavailableError
from tests.support import children, disk, policy_kills
from tests.support.tuf_repositories import Device, Repository, policy, settle


def test_a_process_that_is_killed_leaves_the_old_policy_or_the_new_one(tmp_path):
    found = policy_kills.run(tmp_path, 20)
    assert sum(found.values()) == 20
    assert set(found) == {"1", "2"}


def test_on_a_full_disk_the_old_policy_stays():
    def on_disk(folder):
        repository = Repository(folder / "repository")
        repository.add(policy(1))
        repository.publish()
        device = Device(folder / "device", repository)
        assert asyncio.run(device.epoch()) == 1
        repository.add(policy(2))
        repository.publish()
        disk.fill(folder)
        assert "No space left" in asyncio.run(device.refusal(PolicyUnavailableError))
        device.restart()
        assert asyncio.run(device.epoch()) == 1
        disk.free(folder)
        assert asyncio.run(device.epoch()) == 2
        return sorted(each.name for each in device.cache.iterdir())

    assert disk.run(on_disk, 2) == ["device-secret", "signed.json"]


async def test_a_cache_that_cannot_be_written_keeps_the_old_policy(repository, device, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    await device.epoch()
    repository.add(policy(2))
    repository.publish()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        assert "its cache" in await device.refusal(PolicyUnavailableError)
    device.restart()
    assert (await device.source.fetch()).document.epoch == 2


def test_processes_take_turns(tmp_path):
    """Three processes follow one repository with one cache, while it moves on."""
    repository = Repository(tmp_path / "repository")
    repository.add(policy(1))
    repository.publish()

    def follow():
        device = Device(tmp_path / "device", repository)
        seen = []
        while not seen or seen[-1] < 6:
            epoch = asyncio.run(device.epoch())
            if epoch is not None:
                seen.append(epoch)
        return seen

    settle()
    followers = [children.start(follow) for _ in range(3)]
    for epoch in range(2, 7):
        repository.add(policy(epoch))
        repository.publish()
    for each in followers:
        seen = children.finish(each)
        assert seen == sorted(set(seen))
    assert not os.path.exists(tmp_path / "device" / "cache" / "download" / "scratch")
