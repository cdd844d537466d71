"""Signed repositories: processes are killed while they take a policy, and a chain of as many roots as devices follow."""

from tests.support import policy_kills
from tests.support.tuf_repositories import Device, Repository, policy


def test_a_killed_process_leaves_the_old_policy_or_the_new_one(tmp_path):
    """Of 200 killed processes, each leaves a cache with which the next one starts without a network."""
    found = policy_kills.run(tmp_path, 200)
    print(f"epochs after a kill: {found}")
    assert sum(found.values()) == 200
    assert set(found) == {"1", "2"}


async def test_256_roots_are_followed_and_kept(tmp_path):
    repository = Repository(tmp_path / "repository")
    repository.add(policy(1))
    repository.publish()
    for _ in range(256):
        repository.new_keys("root")
    device = Device(tmp_path / "device", repository)
    assert await device.epoch() == 1
    repository.folder.rename(tmp_path / "gone")
    device.restart()
    assert await device.epoch() == 1
    (tmp_path / "gone").rename(repository.folder)
    repository.new_keys("root")
    repository.new_keys("timestamp")
    repository.publish()
    await device.refusal()
