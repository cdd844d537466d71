"""Taking the policies that a source offers: tighter ones at once, looser ones by their rules and with the next window."""

import asyncio
import os
import signal
from functools import partial

import pytest

from dpmesh.errors import (
    AnnotationError,
    ConfigError,
    DpmeshError,
    LedgerError,
    NotOpenError,
    PolicyHeldError,
    PolicyUnavailableError,
)
from dpmesh.ledger import open_admin
from dpmesh.ledger.audit.verify import verify
from dpmesh.ledger.charge_log import EntryKind, decode
from dpmesh.mesh.follower import PolicyFollower
from dpmesh.rollout.freshness import Freshness
from dpmesh.rollout.held import Held
from dpmesh.rollout.source import Offer, State
from dpmesh.v1 import policy_pb2
from tests.support import children
from tests.support.meshes import assembled
from tests.support.mutual_tls import until
from tests.support.protos import compiled

TYPES = compiled(
    """message Report { string id = 1 [(dpmesh.v1.field).unit = {}];
    double a = 2 [(dpmesh.v1.field).numeric = {lower: 0 upper: 1 epsilon: 1}]; }"""
)
NAME = TYPES.Report.DESCRIPTOR.full_name
DAY = 86_400.0


class Clock:
    """A clock that the test sets."""

    def __init__(self, now=1000.5 * DAY):
        self.now = now

    def __call__(self):
        return self.now


class Source:
    """A source without a network: a test says what it offers."""

    def __init__(self):
        self.name, self.signed, self.state = "the officers", True, State.FRESH
        self.kept = []
        self.offers = []

    async def fetch(self):
        return self.offers.pop(0) if self.offers else None

    def keep(self, offer):
        self.kept.append(offer)


class ByHand(PolicyFollower):
    """A follower that does not look by itself."""

    def start(self, take, now):
        self.take = take


class Device:
    """A mesh whose source is in the hands of a test."""

    def __init__(self, clock=None, *, policy=None, first=None, held=None, follower=ByHand, **more):
        self.clock = clock or Clock()
        self.source = Source()
        self.follower = follower(self.source, 0.01, Freshness(None, None), first=first, held=held)
        begin = globals()["policy"](1, 1.0) if policy is None else policy
        self.mesh = assembled(settings(**more), policy=begin, clock=self.clock, follower=self.follower)

    async def __aenter__(self):
        await self.mesh.__aenter__()
        return self

    async def __aexit__(self, *error):
        await self.mesh.__aexit__(*error)

    async def take(self, offer):
        """Returns None if the offer is in force now, or the seconds until it may be."""
        try:
            await self.follower.take(offer)
        except PolicyHeldError as error:
            assert offer not in self.source.kept
            return error.until - self.clock.now
        return None

    async def epsilon(self):
        return (await self.mesh.release(TYPES.Report(id="a", a=1))).epsilon

    @property
    def notes(self):
        return self.mesh.ledger._store.notes


def policy(epoch, epsilon, upper=1):
    document = policy_pb2.Policy(epoch=epoch)
    rule = document.fields[f"{NAME}.a"].numeric
    rule.lower, rule.upper, rule.epsilon = 0, upper, epsilon
    return document


def offer(epoch, epsilon, upper=1, **terms):
    document = policy(epoch, epsilon, upper)
    good = {"signers": 2, "reason": "ticket 7: recall", **terms}
    return Offer(document, document.SerializeToString(deterministic=True), **good)


def settings(window="24h", url="memory:"):
    budget = {"name": "unit", "epsilon": 1000.0, "accounting": "pure", "window": window}
    return {"ledger": {"url": url}, "budget": [budget]}


TAKEN = offer(1, 1.0)


@pytest.fixture
async def device():
    async with Device(first=TAKEN) as device:
        yield device


@pytest.mark.parametrize("terms", [(0.5,), (1.0, 2), (0.5, 2), (1.0,)])
async def test_what_is_not_looser_is_in_force_at_once_whoever_signed_it(device, terms):
    device.source.state = State.STALE
    assert await device.take(offer(2, *terms, signers=1, reason="")) is None
    assert (await device.epsilon(), device.mesh.policy.document.epoch) == (terms[0], 2)
    assert device.notes == []


async def test_a_looser_policy_is_recorded_and_begins_with_the_next_window(device):
    looser = offer(2, 2.0)
    assert await device.take(looser) == DAY / 2
    device.clock.now += DAY / 2 - 0.001
    assert await device.take(looser) == pytest.approx(0.001, abs=1e-5)
    assert (await device.epsilon(), device.notes) == (1, [])
    device.clock.now += 0.001
    assert await device.take(looser) is None
    assert await device.epsilon() == 2
    assert device.notes == ["policy epoch 2 replaces epoch 1, looser: ticket 7: recall"]


@pytest.mark.parametrize(("epsilon", "seconds"), [(0.5, 3 * DAY), (2.0, 3.5 * DAY)])
async def test_a_policy_waits_for_its_not_before(device, epsilon, seconds):
    later = offer(2, epsilon, not_before=device.clock.now + 3 * DAY)
    assert await device.take(later) == seconds
    device.clock.now += seconds
    assert await device.take(later) is None


@pytest.mark.parametrize(
    ("terms", "text"), [({"signers": 1}, "1 of the 2 officers"), ({"reason": ""}, "no reason")]
)
async def test_a_looser_policy_that_lacks_something_is_never_in_force(device, terms, text):
    for _ in range(3):
        with pytest.raises(ConfigError, match=text):
            await device.take(offer(2, 2.0, **terms))
        device.clock.now += DAY
    assert (await device.epsilon(), device.notes) == (1, [])


@pytest.mark.parametrize("state", [State.STALE, State.EXPIRED])
async def test_a_source_that_is_frozen_loosens_nothing_even_if_it_was_fresh_before(device, state):
    looser = offer(2, 2.0)
    assert await device.take(looser) == DAY / 2
    device.clock.now += DAY
    device.source.state = state
    with pytest.raises(PolicyUnavailableError, match=state):
        await device.take(looser)
    assert await device.epsilon() == 1
    device.source.state = State.FRESH
    assert await device.take(looser) is None


async def test_each_of_many_small_steps_needs_two_officers(device):
    epsilon = 1.0
    for epoch in range(2, 5):
        epsilon *= 1.01
        with pytest.raises(ConfigError, match="officers"):
            await device.take(offer(epoch, epsilon, signers=1))
        step = offer(epoch, epsilon)
        device.clock.now += await device.take(step)
        assert await device.take(step) is None
    assert len(device.notes) == 3


async def test_steps_are_compared_to_what_is_in_force_and_not_to_what_waits(device):
    """A policy that is tighter than the one that waits may still be looser than the one in force."""
    assert await device.take(offer(2, 4.0)) == DAY / 2
    with pytest.raises(ConfigError, match="officers"):
        await device.take(offer(3, 2.0, signers=1))
    assert await device.epsilon() == 1


async def test_a_tighter_policy_of_a_larger_epoch_ends_the_wait_of_a_looser_one(device):
    looser = offer(2, 2.0)
    assert await device.take(looser) == DAY / 2
    assert await device.take(offer(3, 0.5, signers=1)) is None
    device.clock.now += DAY
    with pytest.raises(ConfigError, match="2 is not larger than 3"):
        await device.take(looser)
    with pytest.raises(ConfigError, match="3 is not larger than 3"):
        await device.take(offer(3, 0.25))
    assert (await device.epsilon(), device.notes) == (0.5, [])


async def test_going_back_is_a_loosening(device):
    assert await device.take(offer(2, 0.5, signers=1)) is None
    with pytest.raises(ConfigError, match="officers"):
        await device.take(offer(3, 1.0, signers=1))
    assert await device.take(offer(3, 1.0)) == DAY / 2


async def test_a_device_that_took_nothing_yet_takes_what_the_source_offers():
    """The policy of its image is an older one, and the fleet may have gone on by one officer since."""
    async with Device() as device:
        device.source.state = State.STALE
        later = offer(6, 1.5, not_before=device.clock.now + 5)
        assert await device.take(later) == 5
        device.source.offers = [offer(7, 2.0, signers=1, reason="")]
        await device.follower._look(device.follower.take)
        assert (await device.epsilon(), device.notes) == (2, [])
        for epoch, text in ((6, "not larger"), (8, "officers")):
            with pytest.raises(ConfigError, match=text):
                await device.take(offer(epoch, 3.0, signers=1))


async def test_a_plain_file_has_no_officers_and_no_wait_but_the_ledger_records_it():
    async with Device(policy=policy(0, 1.0), first=TAKEN) as device:
        device.source.signed, device.source.state = False, State.STALE
        edit = offer(0, 2.0, signers=0, reason="")
        assert await device.take(edit) is None
        assert device.notes == ["policy epoch 0 replaces epoch 0, looser: no reason given"]


async def test_lifetime_budgets_have_no_next_window():
    async with Device(first=TAKEN, window="lifetime") as device:
        with pytest.raises(ConfigError, match="officers"):
            await device.take(offer(2, 2.0, signers=1))
        assert await device.take(offer(2, 2.0)) is None
        assert (await device.epsilon(), len(device.notes)) == (2, 1)


async def test_a_device_that_is_off_when_the_window_begins_takes_the_policy_when_it_is_on_again(tmp_path):
    clock, looser = Clock(), offer(2, 2.0)
    async with Device(clock, first=TAKEN, held=Held(tmp_path / "held")) as device:
        assert await device.take(looser) == DAY / 2
    clock.now += DAY / 4
    async with Device(clock, first=TAKEN, held=Held(tmp_path / "held")) as device:
        assert await device.take(looser) == DAY / 4
    clock.now += DAY
    for other in (offer(2, 4.0), looser):
        async with Device(clock, first=TAKEN, held=Held(tmp_path / "none")) as device:
            assert await device.take(other) == DAY / 4, "it may be the first time that this device has it"
    async with Device(clock, first=TAKEN, held=Held(tmp_path / "held")) as device:
        assert await device.take(looser) is None


async def test_a_follower_holds_an_offer_and_puts_it_in_force_in_time():
    async with Device(first=TAKEN, follower=PolicyFollower) as device:
        told = []
        device.follower.on_outcome = told.append
        device.source.offers = [offer(2, 2.0)]
        await until(lambda: device.mesh.policy_status.refused)
        assert "epoch 2 is looser than the policy in force, and begins at 1972-09-28 00:00:00 UTC" in (
            device.mesh.policy_status.refused
        )
        assert (await device.epsilon(), told, device.source.kept) == (1, [], [TAKEN])
        device.clock.now += DAY / 2
        await until(lambda: device.mesh.policy.document.epoch == 2)
        await until(lambda: told)
        assert (await device.epsilon(), told[0].taken, len(device.notes)) == (2, True, 1)


async def test_another_policy_of_the_epoch_that_waits_is_refused_and_a_larger_epoch_is_not():
    async with Device(first=TAKEN, follower=PolicyFollower) as device:
        told = []
        device.follower.on_outcome = told.append
        device.source.offers = [offer(2, 2.0)]
        await until(lambda: "begins at" in device.mesh.policy_status.refused)
        device.source.offers = [offer(2, 0.5)]
        await until(lambda: told)
        assert "epoch 2 waits already" in told[0].reason
        device.clock.now += DAY
        device.source.offers = [offer(3, 0.25, signers=1)]
        await until(lambda: device.mesh.policy.document.epoch == 3)
        assert (await device.epsilon(), device.notes) == (0.25, [])


async def test_a_follower_tries_a_looser_policy_again_once_its_source_is_fresh(monkeypatch):
    async with Device(first=TAKEN, window="lifetime", follower=PolicyFollower) as device:
        device.source.state = State.STALE
        device.source.offers = [offer(2, 2.0)]
        await until(lambda: "its source is stale" in device.mesh.policy_status.refused)
        with monkeypatch.context() as patch:  # In vain, it is not even compiled again.
            patch.setattr(device.follower, "admit", None)
            await asyncio.sleep(0.05)
        assert "its source is stale" in device.mesh.policy_status.refused
        device.source.state = State.FRESH
        await until(lambda: device.mesh.policy.document.epoch == 2)


async def test_the_application_may_loosen_at_once(device):
    await device.mesh.swap(policy(2, 2.0))
    assert (await device.epsilon(), device.notes) == (2, [])


async def test_a_bad_policy_is_refused_before_anything_is_recorded(device):
    with pytest.raises(AnnotationError, match="epsilon"):
        await device.take(offer(2, -1.0))
    device.clock.now += DAY
    assert (await device.epsilon(), device.notes) == (1, [])


async def test_without_a_record_the_old_policy_stays(device, monkeypatch):
    looser = offer(2, 2.0)
    await device.take(looser)
    device.clock.now += DAY

    async def fail(note):
        raise LedgerError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(device.mesh.ledger._store, "record", fail)
        with pytest.raises(LedgerError, match="disk is full"):
            await device.take(looser)
    assert (await device.epsilon(), device.mesh.policy.document.epoch, device.source.kept) == (1, 1, [TAKEN])
    assert await device.take(looser) is None
    assert await device.epsilon() == 2


@pytest.mark.parametrize("end", ["cancel", "close"])
async def test_a_mesh_that_ends_while_it_records_keeps_the_old_policy(device, monkeypatch, end):
    looser, recording, goes_on = offer(2, 2.0), asyncio.Event(), asyncio.Event()
    await device.take(looser)
    device.clock.now += DAY

    async def slowly(note):
        recording.set()
        await goes_on.wait()

    monkeypatch.setattr(device.mesh.ledger._store, "record", slowly)
    before = device.mesh.snapshot
    taking = asyncio.create_task(device.take(looser))
    await recording.wait()
    assert device.mesh.snapshot is before
    if end == "cancel":
        taking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await taking
    else:
        await device.mesh.__aexit__(None, None, None)
        goes_on.set()
        with pytest.raises(NotOpenError):
            await taking
    assert device.mesh.snapshot is before


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_process_that_is_killed_between_record_and_swap_restarts_with_the_old_policy(tmp_path, moment):
    url = f"sqlite:///{tmp_path}/ledger.db"

    async def run():
        clock = Clock()
        async with Device(clock, first=TAKEN, url=url) as device:
            mesh, looser = device.mesh, offer(2, 2.0)
            await device.epsilon()
            await device.take(looser)
            clock.now += DAY
            record = mesh.ledger._store.record

            async def killed(note):
                if moment == "after":
                    await record(note)
                os.kill(os.getpid(), signal.SIGKILL)

            mesh.ledger._store.record = killed
            await device.take(looser)

    pid, reader = children.start(lambda: asyncio.run(run()))
    os.close(reader)
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL

    async def look():
        async with open_admin(url).view() as view:
            assert await verify(view) == []
            entries = [decode(stored.body) async for stored in view.entries()]
        notes = [entry.note for entry in entries if entry.kind is EntryKind.POLICY]
        assert len(notes) == (moment == "after")
        clock = Clock(1002.5 * DAY)
        async with Device(clock, first=TAKEN, url=url) as device:
            assert await device.epsilon() == 1
            assert await device.take(offer(2, 2.0)) == DAY / 2

    asyncio.run(look())


async def test_a_device_that_begins_with_a_newer_image_still_asks_for_two_officers():
    """What it took before is older than its image, so it begins with the image's policy."""
    knows = partial(ByHand, has_taken=True)
    async with Device(follower=knows) as device:
        with pytest.raises(ConfigError, match="1 of the 2 officers"):
            await device.take(offer(2, 2.0, signers=1))
        assert await device.epsilon() == 1
    async with Device() as device:
        assert await device.take(offer(2, 2.0, signers=1)) is None


async def test_a_looser_policy_that_can_not_be_kept_is_recorded_once():
    """The next looks try it again, and the chain must not grow with each of them."""
    async with Device(first=TAKEN) as device:
        looser = offer(2, 2.0)
        device.clock.now += await device.take(looser) + 1
        kept, device.source.keep = device.source.keep, full_disk
        for _ in range(3):
            with pytest.raises(DpmeshError, match="disk"):
                await device.take(looser)
        device.source.keep = kept
        assert await device.take(looser) is None
        assert len(device.notes) == 1


def full_disk(_offer):
    raise DpmeshError("the disk is full")
