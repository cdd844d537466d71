"""The names of a repository's targets: every reader finds a policy by one rule."""

from dpmesh.rollout.layout import FORMER, POLICY, named


def test_a_policy_is_found_by_its_name_and_suffix():
    targets = {"policy.yml": 1, "former.json": 2, "policy.txt": 3, "a.policy.yaml": 4, "ring.json": 5}
    assert named(targets, POLICY) == [1]
    assert named(targets, FORMER) == [2]
    assert named({}, POLICY) == []
    assert named({"policy.json": 1, "policy.yaml": 2}, POLICY) == [2, 1]
