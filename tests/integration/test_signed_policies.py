"""A mesh follows a repository of signed policies: from its first start, over restarts, with and without a network."""

from __future__ import annotations

import asyncio
import json
import shutil
import time

import pytest

import dpmesh
from dpmesh.errors import ConfigError
from tests.support.mutual_tls import until
from tests.support.protos import compiled
from tests.support.tuf_repositories import Repository, policy

TYPES = compiled(
    """message Report { string id = 1 [(dpmesh.v1.field).unit = {}];
    double a = 2 [(dpmesh.v1.field).numeric = {lower: 0 upper: 1 epsilon: 1 output: IN_RANGE}]; }"""
)
NAME = TYPES.Report.DESCRIPTOR.full_name
BUDGET = {"name": "unit", "epsilon": 1000.0, "accounting": "pure", "window": "24h"}


def costing(epoch, epsilon):
    rule = {"numeric": {"lower": 0, "upper": 1, "epsilon": epsilon, "output": "IN_RANGE"}}
    return policy(epoch, fields={f"{NAME}.a": rule})


@pytest.fixture
def repository(tmp_path):
    made = Repository(tmp_path / "repository")
    made.add(costing(1, 0.5))
    made.publish()
    (tmp_path / "root.json").write_bytes(made.image)
    return made


@pytest.fixture
def settings(tmp_path, repository):
    source = {
        "source": f"tuf+file://{repository.folder}",
        "root": str(tmp_path / "root.json"),
        "poll": "0.1s",
    }
    policy = {**source, "cache": str(tmp_path / "cache")}
    return {"ledger": {"url": "memory:"}, "budget": [BUDGET], "policy": policy}


async def cost(mesh):
    return (await mesh.release(TYPES.Report(id="a", a=1))).epsilon


async def test_the_first_start_takes_the_repository_s_policy_before_anything_leaves(settings):
    async with dpmesh.open(settings) as mesh:
        assert await cost(mesh) == 0.5
        assert mesh.policy_status.epoch == 1


async def test_a_tighter_policy_is_taken_and_survives_a_restart_without_the_repository(settings, repository):
    async with dpmesh.open(settings) as mesh:
        repository.add(costing(2, 0.25))
        repository.publish()
        await until(lambda: mesh.policy_status.epoch == 2)
        assert await cost(mesh) == 0.25
    shutil.rmtree(repository.folder)
    async with dpmesh.open(settings) as mesh:
        assert await cost(mesh) == 0.25
        await until(lambda: mesh.policy_status.state == "stale")
        await until(lambda: "no such file" in mesh.policy_status.refused)


async def test_a_first_start_without_the_repository_takes_the_image_s_policy_or_none(
    settings, repository, tmp_path
):
    gone = repository.folder.rename(tmp_path / "gone")
    with pytest.raises(ConfigError, match="policy repository"):
        dpmesh.open(settings)
    image = tmp_path / "image.json"
    image.write_bytes(costing(1, 0.125))
    settings["policy"]["file"] = str(image)
    async with dpmesh.open(settings) as mesh:
        assert await cost(mesh) == 0.125
        gone.rename(repository.folder)
        await until(lambda: "is not larger than 1" in mesh.policy_status.refused)
        repository.add(costing(2, 0.0625))
        repository.publish()
        await until(lambda: mesh.policy_status.epoch == 2)
        assert await cost(mesh) == 0.0625


async def test_a_forged_policy_changes_nothing(settings, repository, caplog):
    async with dpmesh.open(settings) as mesh:
        before = mesh.snapshot
        stranger = Repository(repository.folder.with_name("stranger"))
        stranger.add(json.dumps({"epoch": 9}).encode())
        stranger.publish()
        for name in ("metadata", "targets"):
            shutil.copytree(stranger.folder / name, repository.folder / name, dirs_exist_ok=True)
        await until(lambda: "can't be trusted" in mesh.policy_status.refused)
        assert mesh.snapshot is before
        assert await cost(mesh) == 0.5


class Clock:
    """A clock that stands until the test moves it."""

    def __init__(self):
        self.now = time.time()

    def __call__(self):
        return self.now


async def test_a_looser_policy_waits_for_the_second_officer_and_for_the_window(settings, repository):
    clock = Clock()
    settings["budget"] = [{**BUDGET, "window": "1h"}]
    async with dpmesh.open(settings, clock=clock) as mesh:
        repository.add(costing(2, 0.75), reason="ticket 7: recall")
        repository.publish()
        await until(lambda: "1 of the 2 officers" in mesh.policy_status.refused)
        repository.publish(targets_keys=repository.keys["targets"])
        await until(lambda: "begins at" in mesh.policy_status.refused)
        assert await cost(mesh) == 0.5
        clock.now += 3600
        await until(lambda: mesh.policy_status.epoch == 2)
        await until(lambda: mesh.policy_status.refused == "")
        assert await cost(mesh) == 0.75
        assert mesh.ledger._store.notes == ["policy epoch 2 replaces epoch 1, looser: ticket 7: recall"]


async def test_a_looser_policy_that_waits_can_be_halted(settings, repository):
    clock = Clock()
    settings["budget"] = [{**BUDGET, "window": "1h"}]
    async with dpmesh.open(settings, clock=clock) as mesh:
        repository.add(costing(2, 0.75), reason="ticket 7: recall")
        repository.publish(targets_keys=repository.keys["targets"])
        await until(lambda: "begins at" in mesh.policy_status.refused)
        repository.ring(2, 0)
        repository.publish(targets_keys=repository.keys["targets"])
        await until(lambda: "for this device no more" in mesh.policy_status.refused)
        clock.now += 3600
        await asyncio.sleep(0.3)
        assert await cost(mesh) == 0.5
    async with dpmesh.open(settings, clock=clock) as mesh:
        await asyncio.sleep(0.3)
        assert (await cost(mesh), mesh.policy_status.epoch) == (0.5, 1)
        repository.ring(2, 1)
        repository.publish(targets_keys=repository.keys["targets"])
        await until(lambda: mesh.policy_status.epoch == 2)


async def test_a_repository_that_is_frozen_loosens_nothing(settings, repository, tmp_path):
    clock = Clock()
    settings["budget"] = [{**BUDGET, "window": "1h"}]
    async with dpmesh.open(settings, clock=clock) as mesh:
        repository.add(costing(2, 0.75), reason="ticket 7: recall")
        repository.publish(targets_keys=repository.keys["targets"])
        await until(lambda: "begins at" in mesh.policy_status.refused)
        gone = repository.folder.rename(tmp_path / "gone")
        await until(lambda: mesh.policy_status.state == "stale")
        clock.now += 3600  # The policy may begin, but nobody knows whether its officers took it back.
        await asyncio.sleep(0.3)
        assert await cost(mesh) == 0.5
        gone.rename(repository.folder)
        await until(lambda: mesh.policy_status.epoch == 2)
