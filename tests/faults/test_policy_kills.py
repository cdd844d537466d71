"""Processes are killed while they take a policy from a signed repository."""

from tests.support import policy_kills


def test_a_killed_process_leaves_the_old_policy_or_the_new_one(tmp_path):
    """Of 200 killed processes, each leaves a cache with which the next one starts without a network."""
    found = policy_kills.run(tmp_path, 200)
    print(f"epochs after a kill: {found}")
    assert sum(found.values()) == 200
    assert set(found) == {"1", "2"}
