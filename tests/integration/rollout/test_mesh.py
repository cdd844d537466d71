"""Meshes that follow a policy file and a push service: what they report, and what they do without the service."""

from __future__ import annotations

import hashlib
from contextlib import AsyncExitStack, nullcontext

import pytest

import dpmesh
from dpmesh.errors import ConfigError, ProtectionError
from dpmesh.identity.ca.authority import LocalSource
from dpmesh.identity.rotation.rotating_identity import RotatingIdentity
from dpmesh.rollout.rings import Ring
from dpmesh_grpc import rollout_client
from tests.support.mutual_tls import until
from tests.support.protos import compiled

TYPES = compiled(
    """message Report { string id = 1 [(dpmesh.v1.field).unit = {}];
    double a = 2 [(dpmesh.v1.field).numeric = {lower: 0 upper: 1 epsilon: 1 output: IN_RANGE}]; }"""
)
NAME = TYPES.Report.DESCRIPTOR.full_name
SQLITE = pytest.mark.parametrize("rig", ["sqlite"], indirect=True)


def policy(epoch, epsilon):
    rule = f"{{numeric: {{lower: 0, upper: 1, epsilon: {epsilon}, output: IN_RANGE}}}}"
    return f"epoch: {epoch}\nfields:\n  {NAME}.a: {rule}\n...\n".encode()


class Following:
    """A mesh that looks at its file once an hour, unless it is told to."""

    def __init__(self, rig, folder, **more):
        folder.mkdir(exist_ok=True)
        self.file = folder / "policy.yaml"
        if not self.file.exists():
            self.file.write_bytes(policy(4, 1))
        self.settings = {
            "ledger": {"url": "memory:"},
            "budget": [{"name": "unit", "epsilon": 1000.0, "accounting": "pure"}],
            "policy": {
                "source": str(self.file),
                "poll": "1h",
                "push": f"127.0.0.1:{rig.port}",
                "cache": f"{folder}/cache",
                **more,
            },
        }
        self.rig = rig

    async def open(self, stack):
        identity = RotatingIdentity(LocalSource(self.rig.authority))
        self.identity = await stack.enter_async_context(identity)
        self.mesh = await stack.enter_async_context(dpmesh.open(self.settings))
        await stack.enter_async_context(rollout_client(self.mesh, self.identity))
        return self.mesh


@SQLITE
async def test_a_push_is_faster_than_the_poll_and_the_outcome_is_reported(rig, tmp_path):
    rig.repository.offer(4, policy(4, 1))
    await rig.serve()
    following = Following(rig, tmp_path / "device")
    mesh = await following.open(rig.stack)
    await rig.until(lambda found: found.acks == 1)  # What it began with.
    following.file.write_bytes(policy(5, 0.5))
    rig.repository.offer(5, policy(5, 0.5))
    await rig.until(lambda found: (found.epoch, found.acks) == (5, 1))
    assert mesh.policy.document.fields[f"{NAME}.a"].numeric.epsilon == 0.5
    following.file.write_bytes(policy(6, -1))
    rig.repository.offer(6, policy(6, -1))
    await rig.until(lambda found: (found.epoch, found.refused) == (6, 1))
    (reason,) = (await rig.newest()).nacks
    assert reason.startswith(f"{NAME}.a: ")
    assert mesh.policy.document.epoch == 5


@SQLITE
async def test_a_device_that_starts_again_is_still_one_device(rig, tmp_path):
    rig.repository.offer(4, policy(4, 1))
    await rig.serve()
    for _ in range(3):
        reports = rig.service.reports
        async with AsyncExitStack() as stack:
            await Following(rig, tmp_path / "device").open(stack)
            await until(lambda reports=reports: rig.service.reports > reports)
    await Following(rig, tmp_path / "other").open(rig.stack)
    await rig.until(lambda found: found.acks > 1)
    assert (await rig.newest()).acks == 2


@SQLITE
async def test_rings_take_a_signed_policy_one_after_the_other(rig, tmp_path):
    """Eight devices; those outside of the ring go on with what they have, until it grows."""
    repository = rig.repository
    repository.offer(4, policy(4, 1))
    await rig.serve()
    image = tmp_path / "root.json"
    image.write_bytes(repository.image)
    source = {"source": f"tuf+file://{repository.folder}", "root": str(image)}
    meshes = [await Following(rig, tmp_path / str(n), **source).open(rig.stack) for n in range(8)]
    await rig.until(lambda found: (found.epoch, found.acks) == (4, 8))
    repository.offer(5, policy(5, 0.5), share=0.5, former=(4, policy(4, 1)))
    # A source asks for the device's secret when it first looks at a ring.
    await until(lambda: len([*tmp_path.glob("*/cache/*/device-secret")]) == 8)
    secrets = [next((tmp_path / str(n) / "cache").glob("*/device-secret")).read_bytes() for n in range(8)]
    ring = [Ring(5, 0.5).has(secret) for secret in secrets]
    await rig.until(lambda found: (found.epoch, found.acks) == (5, sum(ring)))
    assert [mesh.policy.document.epoch == 5 for mesh in meshes] == ring
    repository.offer(5, policy(5, 0.5), share=1.0)
    await rig.until(lambda found: (found.epoch, found.share, found.acks) == (5, 1.0, 8))
    assert {mesh.policy.document.epoch for mesh in meshes} == {5}


@SQLITE
async def test_a_policy_of_another_content_is_told_apart(rig, tmp_path):
    rig.repository.offer(4, policy(4, 0.25))
    await rig.serve()
    await Following(rig, tmp_path / "device").open(rig.stack)
    await rig.until(lambda found: found.others == 1)


@SQLITE
async def test_without_the_service_or_the_key_a_mesh_runs_as_before(rig, tmp_path):
    rig.port = 1
    following = Following(rig, tmp_path / "device", poll="0.1s")
    mesh = await following.open(rig.stack)
    following.file.write_bytes(policy(5, 0.5))
    await until(lambda: mesh.policy.document.epoch == 5)
    following.settings["policy"]["push"] = ""
    async with dpmesh.open(following.settings) as other, rollout_client(other, following.identity):
        assert other.outcome_listeners == []
    assert not (tmp_path / "device" / "cache" / "device-secret").stat().st_mode & 0o077
    assert mesh.follower.taken.digest == hashlib.sha256(policy(5, 0.5)).hexdigest()


@SQLITE
async def test_a_secret_that_others_may_read_is_refused(rig, tmp_path):
    following = Following(rig, tmp_path / "device")
    cache = tmp_path / "device" / "cache"
    cache.mkdir()
    (cache / "device-secret").write_bytes(bytes(32))
    (cache / "device-secret").chmod(0o644)
    with pytest.raises(ConfigError, match="others may read the device's secret"):
        await following.open(rig.stack)


def test_push_without_a_source_is_an_error():
    with pytest.raises(ConfigError, match="policy.push tells when to look at policy.source"):
        dpmesh.open({"policy": {"push": "host:1"}})


async def test_a_mesh_counts_what_it_refuses():
    settings = {
        "ledger": {"url": "memory:"},
        "budget": [{"name": "unit", "epsilon": 2.5, "accounting": "pure"}],
    }
    good, bad = TYPES.Report(id="a", a=1), TYPES.Report(a=1)
    async with dpmesh.open(settings) as mesh:
        for expected in (0, 0, 1):  # The budget covers two.
            with pytest.raises(dpmesh.errors.BudgetExhaustedError) if expected else nullcontext():
                await mesh.release(good)
            assert mesh.refusals == expected
        with pytest.raises(ProtectionError):
            await mesh.release(bad)
        assert mesh.refusals == 2
    async with dpmesh.open({**settings, "mode": "observe"}) as mesh:
        await mesh.release(bad)
        assert mesh.refusals == 0
