"""The folder of a repository as officers' commands read it: they trust what devices trust, and no more."""

import json

import pytest
from securesystemslib.signer import Key

from dpmesh.errors import ConfigError
from dpmesh.rollout.tuf_folder import PolicyFolder
from tests.support.tuf_repositories import Repository, policy


def test_one_key_under_two_ids_counts_once(tmp_path):
    repository = Repository(tmp_path)
    twin = Key.from_dict("0" * 64, repository.keys["targets"][0].public_key.to_dict())
    repository.root.add_key(twin, "targets")
    repository.root.roles["targets"].threshold = 2
    repository.next_root()
    repository.next_root()
    repository.add(policy(1))
    repository.publish()
    raw = json.loads(repository.read("1.targets.json"))
    raw["signatures"].append(raw["signatures"][0] | {"keyid": twin.keyid})
    repository.write("1.targets.json", json.dumps(raw).encode())
    with pytest.raises(ConfigError, match=r"1\.targets\.json: is not signed as the root asks"):
        PolicyFolder(tmp_path).state()
    repository.publish(targets_keys=repository.keys["targets"])
    assert PolicyFolder(tmp_path).state().targets.version == 2
