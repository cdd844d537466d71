"""Following while the source, the disk or the ledger is out of order; and when what was refused fits later."""

from __future__ import annotations

import asyncio
import shutil
import types

import pytest

import dpmesh
from dpmesh.errors import ConfigError, LedgerError, PolicyUnavailableError, ProtectionError
from dpmesh.mesh import follower as following
from dpmesh.mesh.follower import PolicyFollower
from dpmesh.rollout.freshness import Freshness
from dpmesh.rollout.source import Offer, State
from dpmesh.v1 import policy_pb2
from tests.support.mutual_tls import until

from .test_follower import NAME, TYPES, cost, policy, replace, settings


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text(policy())
    return path


class Scripted:
    """A source that does what a test says."""

    name, signed = "scripted", False

    def __init__(self, state=State.STALE):
        self.state = state
        self.answer = lambda: None

    def first(self):
        return []

    async def fetch(self):
        found = self.answer()
        return await found if asyncio.iscoroutine(found) else found

    def keep(self, offer):
        pass


def offer(epoch):
    return Offer(policy_pb2.Policy(epoch=epoch), b"%d" % epoch)


class Rig:
    """A follower of a scripted source, the clock by which policies expire, and what was told."""

    def __init__(self, monkeypatch, longest=10.0):
        monkeypatch.setattr(following, "_LONGEST_FETCH", 0.05)
        self.source, self.elapsed = Scripted(), 0.0
        freshness = Freshness(None, longest, lambda: 0.0, lambda: self.elapsed)
        self.follower = PolicyFollower(self.source, 0.01, freshness)
        self.outcomes, self.taken = [], []
        self.follower.on_outcome = self.outcomes.append
        self.trouble = None

    async def take(self, offer):
        if self.trouble is not None:
            await self.trouble()
        self.taken.append(offer.document.epoch)

    async def __aenter__(self):
        self.follower.start(self.take, lambda: 0.0)
        return self

    async def __aexit__(self, *_):
        await self.follower.stop()

    def raises(self, error):
        async def trouble():
            raise error

        self.trouble = trouble


@pytest.fixture
def rig(monkeypatch):
    return Rig(monkeypatch)


async def hang():
    await asyncio.sleep(3600)


def garbage():
    raise RuntimeError("41.77777777")


@pytest.mark.parametrize("answer", [hang, garbage])
async def test_a_source_that_was_fresh_and_does_not_answer_any_more_is_stale_and_expires(rig, answer):
    """Also if the source itself goes on saying that it is fresh, as it does when its fetch is cut off."""
    rig.source.state = State.FRESH
    async with rig:
        await until(lambda: rig.follower.state is State.FRESH)
        rig.source.answer = answer
        await until(lambda: rig.follower.state is State.STALE)
        rig.elapsed += 11
        await until(lambda: rig.follower.state is State.EXPIRED)
        assert "41.7" not in rig.follower.refused
        rig.source.answer = lambda: None
        await until(lambda: rig.follower.state is State.FRESH)
        assert rig.follower.refused == ""


async def test_a_policy_expires_although_a_swap_never_ends(rig):
    rig.source.state, rig.source.answer, rig.trouble = State.FRESH, lambda: offer(1), hang
    async with rig:
        await until(lambda: rig.follower._unfit)
        rig.elapsed += 100  # Swaps may take a while, also if that is longer than max_offline.
        rig.follower.check()
        assert rig.follower.state is State.FRESH
        rig.elapsed += 100
        rig.follower.check()
        assert rig.follower.state is State.EXPIRED


def test_a_start_after_a_long_time_is_expired_until_the_source_answers(monkeypatch, tmp_path):
    path, clock = tmp_path / "answered", [0.0]
    first = Freshness(path, 10.0, lambda: clock[0], lambda: 0.0)
    first.answered()
    first.note()
    clock[0] = 11.0
    for state, expected in ((State.STALE, State.EXPIRED), (State.FRESH, State.FRESH)):
        freshness = Freshness(path, 10.0, lambda: clock[0], lambda: 0.0)
        assert PolicyFollower(Scripted(state), 1.0, freshness).state is expected


async def test_a_fresh_source_does_not_expire_between_two_looks(rig):
    rig.source.state = State.FRESH
    rig.follower = PolicyFollower(rig.source, 3600.0, rig.follower.freshness)
    rig.elapsed += 3600
    rig.follower.check()
    assert rig.follower.state is State.FRESH


async def test_trouble_that_may_pass_is_told_once_and_tried_again(rig):
    offers = iter([offer(1)])
    rig.source.answer = lambda: next(offers, None)
    rig.raises(LedgerError("postgresql://db.internal:5432/x closed the connection"))
    async with rig:
        await until(lambda: rig.outcomes)
        await asyncio.sleep(0.1)
        assert [(each.epoch, each.taken, each.reason) for each in rig.outcomes] == [
            (1, False, "the ledger can't answer")
        ]
        rig.trouble = None
        await until(lambda: rig.taken)
        await until(lambda: len(rig.outcomes) == 2)
        assert (rig.outcomes[1].taken, rig.outcomes[1].reason) == (True, "")
        assert rig.follower.refused == ""


async def test_a_refused_policy_is_tried_again_when_a_module_is_imported(rig, monkeypatch):
    offers, tried = iter([offer(1)]), []
    rig.source.answer = lambda: next(offers, None)

    async def refuse():
        tried.append(1)
        raise ConfigError("no loaded proto has acme.A")

    rig.trouble = refuse
    async with rig:
        await until(lambda: tried)
        await asyncio.sleep(0.1)
        assert len(tried) == 1
        rig.trouble = None
        monkeypatch.setitem(following.sys.modules, "dpmesh_test_late_pb2", types.ModuleType("late"))
        await until(lambda: rig.taken)
        assert [each.taken for each in rig.outcomes] == [False, True]


async def test_a_mistake_may_be_put_right_under_its_own_epoch(rig):
    offers = iter([offer(1), Offer(policy_pb2.Policy(epoch=1, version="right"), b"right")])
    rig.source.answer = lambda: next(offers, None)
    refusals = iter([ConfigError("a mistake")])

    async def refuse_once():
        for error in refusals:
            raise error

    rig.trouble = refuse_once
    async with rig:
        await until(lambda: rig.taken)
        assert [each.reason for each in rig.outcomes] == ["a mistake", ""]


async def test_a_source_that_can_not_tell_keeps_what_waits(rig):
    answers = iter([offer(1)])

    def answer():
        for each in answers:
            return each
        raise PolicyUnavailableError("no answer")

    rig.source.answer = answer
    rig.raises(LedgerError("the ledger can't answer"))
    async with rig:
        await until(lambda: rig.follower.refused == "no answer")
        rig.trouble = None
        await until(lambda: rig.taken == [1])


async def test_a_full_disk_is_told_and_the_policy_is_taken_when_there_is_room(tmp_path, file):
    cache = tmp_path / "cache"
    async with dpmesh.open(settings(file, cache=str(cache))) as mesh:
        outcomes, told = [], mesh._follower.on_outcome
        mesh._follower.on_outcome = lambda outcome: (outcomes.append(outcome), told(outcome))
        shutil.rmtree(cache)
        cache.write_text("")
        replace(file, policy(0.5))
        await until(lambda: outcomes and not outcomes[-1].taken)
        assert "policy.cache" in outcomes[-1].reason
        cache.unlink()
        await until(lambda: outcomes[-1].taken)
        assert await cost(mesh) == 0.5


async def test_a_mesh_that_is_entered_again_goes_on_with_its_policy(file):
    file.write_text(policy(1, "epoch: 1\n"))
    mesh = dpmesh.open(settings(file))
    async with mesh:
        replace(file, policy(0.5, "epoch: 2\n"))
        await until(lambda: mesh.policy.document.epoch == 2)
    async with mesh:
        assert await cost(mesh) == 0.5
        replace(file, policy(0.25, "epoch: 3\n"))
        await until(lambda: mesh.policy.document.epoch == 3)


async def test_nothing_leaves_before_the_first_answer_after_a_long_time(file, monkeypatch):
    async with dpmesh.open(settings(file, max_offline="0.2s")) as mesh:
        assert await cost(mesh) == 1
    await asyncio.sleep(0.3)
    file.unlink()
    async with dpmesh.open(settings(file, max_offline="0.2s")) as mesh:
        assert mesh.policy_status.state == "expired"
        with pytest.raises(ProtectionError, match=f"{NAME}.*POLICY_EXPIRED"):
            await mesh.release(TYPES.Report(id="a", a=1))


async def test_a_policy_expires_although_telemetry_fails(monkeypatch):
    """The providers of spans and metrics are the application's."""
    from dpmesh.mesh import mesh as meshes
    from tests.support.meshes import assembled

    monkeypatch.setattr(meshes, "_REFRESH_SECONDS", 0.01)
    elapsed = 0.0
    freshness = Freshness(None, 10.0, lambda: 0.0, lambda: elapsed)
    follower = PolicyFollower(Scripted(), 0.01, freshness)
    monkeypatch.setattr(follower.source, "answer", hang)
    mesh = assembled({"ledger": {"url": "memory:"}}, policy=policy_pb2.Policy(epoch=1), follower=follower)
    async with mesh:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        monkeypatch.setattr(mesh._telemetry, "refresh", None)  # Calling it raises.
        elapsed = 11.0
        await until(lambda: mesh.is_expired)
