"""Rotation, in virtual time: who is in force at each moment, whatever the source and the clocks do."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import os
import signal
import threading
import time
import traceback

import pytest

from dpmesh.errors import ConfigError, IdentityError
from dpmesh.identity import Identity, RotatingIdentity
from tests.support import children
from tests.support.virtual_time import VirtualLoop, in_virtual_time

LIFE = 1800.0
EPOCH = 1_800_000_000.0
SECRET = "hunter2"


class Clock:
    """Seconds since 1970 in a virtual loop, and how far a machine's own clock is off."""

    def __init__(self, off: float = 0.0) -> None:
        self.off = off
        self._loop = asyncio.get_running_loop()

    def true(self) -> float:
        return EPOCH + self._loop.time()

    def __call__(self) -> float:
        return self.true() + self.off


class Issuer:
    """A source whose own clock is right: it issues, fails or hangs as it is told."""

    def __init__(
        self, clock: Clock, *, life: float = LIFE, backdated: float = 300.0, follows: bool = False
    ) -> None:
        self.follows = follows
        self.clock = clock
        self.life = life
        self.backdated = backdated
        self.error: BaseException | None = None
        self.hangs = False
        self.asked: list[float] = []
        self.issued = 0
        self.fetching = 0
        self.closed = 0
        self.file = self.make()  # What a source that follows gives.

    def make(self, **changes) -> Identity:
        now, number = self.clock.true(), next(numbers)
        parts = {
            "certificates": b"certificate %d" % number,
            "key": b"key %d" % number,
            "trust_bundle": b"root",
            "trust_domain": "fleet.example",
            "not_before": now - self.backdated,
            "not_after": now + self.life,
            "obtained": now,
        }
        return Identity(**{**parts, **changes})

    async def fetch(self) -> Identity:
        self.asked.append(self.clock.true())
        self.fetching += 1
        try:
            await asyncio.sleep(1e9 if self.hangs else 0.01)
        finally:
            self.fetching -= 1
        if self.error is not None:
            raise self.error
        if self.follows:
            return self.file
        self.issued += 1
        return self.make()

    def answered(self) -> int:
        """How often it was asked, but for a question that it thinks about just now: it takes 0.01 s for each."""
        return len(self.asked) - self.fetching

    async def close(self) -> None:
        self.closed += 1


numbers = itertools.count()


def unavailable() -> IdentityError:
    return IdentityError("ISSUER_UNAVAILABLE", "no answer")


@contextlib.asynccontextmanager
async def opened(*, off: float = 0.0, every: float | None = None, **options):
    clock = Clock(off)
    issuer = Issuer(clock, **options)
    async with RotatingIdentity(issuer, every=every, clock=clock) as identity:
        yield clock, issuer, identity


def reason(identity: RotatingIdentity) -> str | None:
    """Why there is no identity in force, or None when there is one."""
    try:
        _ = identity.current
    except IdentityError as error:
        return error.reason
    return None


async def watched(identity: RotatingIdentity, seconds: float, step: float = 0.25) -> set[str | None]:
    """What `current` says, four times a second (or every step) for so many seconds."""
    end = asyncio.get_running_loop().time() + seconds
    seen = set()
    while asyncio.get_running_loop().time() < end:
        seen.add(reason(identity))
        await asyncio.sleep(step)
    return seen


def keys() -> set[bytes]:
    """Of all identities that are in memory."""
    gc.collect()
    return {entry.key for entry in gc.get_objects() if isinstance(entry, Identity)}


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# -- the schedule ------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_it_renews_at_half_of_the_life_give_or_take_a_tenth():
    life = LIFE / 10
    async with opened(life=life) as (_, issuer, identity):
        assert await watched(identity, 50 * life, 0.5) == {None}
        gaps = [after - before for before, after in itertools.pairwise(issuer.asked)]
        assert 50 / 0.6 - 2 <= len(gaps) <= 50 / 0.4 + 2
        assert all(0.4 * life <= gap <= 0.6 * life + 0.1 for gap in gaps)
        # Even rolls: 80 or more gaps leave the lowest or the highest fifth of the range empty with a probability below
        # 2 x 0.8^80 < 4e-8. A schedule without jitter leaves both empty.
        assert min(gaps) < 0.44 * life
        assert max(gaps) > 0.56 * life
        assert identity.generation == issuer.issued == issuer.answered()
        assert identity.status().failures == 0


@in_virtual_time
async def test_the_life_is_counted_from_when_it_was_obtained_not_from_when_it_begins():
    async with opened(backdated=10 * LIFE) as (_, issuer, identity):
        await identity.wait(1)
        assert issuer.asked[1] - issuer.asked[0] >= 0.4 * LIFE


@in_virtual_time
async def test_every_rotates_sooner_and_never_later():
    async with opened(every=2) as (_, issuer, identity):
        await asyncio.sleep(200)
        gaps = [after - before for before, after in itertools.pairwise(issuer.asked)]
        assert all(1.8 <= gap <= 2.3 for gap in gaps)
        assert len({round(gap, 4) for gap in gaps}) > 20
    async with opened(every=100 * LIFE) as (_, issuer, identity):
        await identity.wait(1)
        assert issuer.asked[1] - issuer.asked[0] <= 0.6 * LIFE + 0.1


@pytest.mark.parametrize("every", [0, -1, float("nan"), float("inf")])
@in_virtual_time
async def test_every_is_a_positive_number(every):
    with pytest.raises(ConfigError, match="positive"):
        RotatingIdentity(Issuer(Clock()), every=every)


@in_virtual_time
async def test_every_is_refused_where_it_would_have_no_effect():
    with pytest.raises(ConfigError, match="others renew"):
        RotatingIdentity(Issuer(Clock(), follows=True), every=2)


@in_virtual_time
async def test_the_status_says_when():
    async with opened() as (clock, issuer, identity):
        status = identity.status()
        assert (status.generation, status.failures, status.last_error) == (1, 0, None)
        assert status.not_after == identity.current.not_after
        await identity.wait(1)
        assert issuer.asked[1] == pytest.approx(status.renews_at, abs=0.1)
        issuer.error = IdentityError("REFUSED", SECRET)
        await asyncio.sleep(0.7 * LIFE)
        status = identity.status()
        assert status.failures >= 1
        assert status.last_error == "REFUSED"
        assert clock() <= status.renews_at <= clock() + 31
        assert (await identity.wait(1), identity.status().generation) == (2, 2)


# -- a source that fails -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lifetimes", [1, 2, 3])
@in_virtual_time
async def test_an_issuer_that_is_down(lifetimes, caplog):
    async with opened() as (clock, issuer, identity):
        await identity.wait(1)
        last = identity.current
        issuer.error = unavailable()
        assert await watched(identity, last.not_after - clock() - 0.5) == {None}
        assert identity.current is last
        await asyncio.sleep(0.75)
        assert await watched(identity, lifetimes * LIFE, 1) == {"EXPIRED"}
        assert identity.generation == 2
        status = identity.status()
        assert (status.last_error, status.not_after) == ("ISSUER_UNAVAILABLE", last.not_after)
        assert status.failures == issuer.answered() - 2
        issuer.error = None
        assert await asyncio.wait_for(identity.wait(2), 31) == 3
        assert await watched(identity, 3 * LIFE) == {None}
        assert identity.status().failures == 0
    said = warnings(caplog)
    assert len(said) == 3, said
    assert "until it ends" in said[0]
    assert "nothing is sent" in said[1]
    assert "works again" in said[2]


@in_virtual_time
async def test_retries_back_off_and_hurry_before_the_end():
    async with opened() as (_, issuer, identity):
        end = identity.current.not_after
        issuer.error = unavailable()
        await asyncio.sleep(2 * LIFE)
        asked = issuer.asked[1:]
        gaps = [(at, after - at) for at, after in itertools.pairwise(asked)]
        for number, (at, gap) in enumerate(gaps):
            left = end - at - 0.01  # The failure comes 0.01 s after the question.
            longest = min(30, 2.0**number)
            assert 0.1 <= gap <= longest + 0.02
            if left > 1:
                assert gap <= left / 10 + 0.02
                assert gap >= min(longest / 2, left / 10) - 0.02
        assert gaps[5][1] > 14
        assert all(gap > 14 for at, gap in gaps if at > end)


@in_virtual_time
async def test_a_source_that_flaps_is_logged_once_a_change(caplog):
    async with opened() as (_, issuer, identity):
        for generation in range(1, 5):
            issuer.error = unavailable()
            await asyncio.sleep(0.8 * LIFE)
            issuer.error = None
            assert await identity.wait(generation) == generation + 1
            assert reason(identity) is None
    assert len(warnings(caplog)) == 8


@in_virtual_time
async def test_a_source_that_hangs_gets_ten_seconds_and_less_near_the_end():
    async with opened() as (clock, issuer, identity):
        end = identity.current.not_after
        issuer.hangs = True
        assert await watched(identity, end - clock() - 0.5) == {None}
        assert await asyncio.sleep(1) or reason(identity) == "EXPIRED"
        first, second = issuer.asked[1:3]
        assert 10 <= second - first <= 11.1
        # Half of the rest at most, plus a tenth of it: the last question comes close to the end.
        late = [at for at in issuer.asked if at < end]
        assert end - late[-1] < 1
        issuer.hangs = False
        await asyncio.wait_for(identity.wait(1), 10 + 31)
        assert issuer.fetching == 0


@in_virtual_time
async def test_what_else_a_source_raises_shows_by_its_type_alone(caplog):
    async with opened() as (_, issuer, identity):
        issuer.error = RuntimeError(SECRET)
        with pytest.raises(IdentityError, match=r"\(RuntimeError\) \[ISSUER_UNAVAILABLE\]") as caught:
            await identity.renew("a test")
        assert SECRET not in "".join(traceback.format_exception(caught.value))
        await asyncio.sleep(LIFE)
        assert identity.status().last_error == "ISSUER_UNAVAILABLE"
    assert warnings(caplog)
    assert SECRET not in caplog.text


@in_virtual_time
async def test_a_cancellation_of_the_sources_own_is_a_failure_and_no_end():
    async with opened() as (_, issuer, identity):
        issuer.error = asyncio.CancelledError()
        with pytest.raises(IdentityError, match="CancelledError"):
            await identity.renew("a test")
        await asyncio.sleep(0.7 * LIFE)
        assert identity.status().failures > 1
        issuer.error = None
        assert await identity.wait(1) == 2


@in_virtual_time
async def test_a_reason_that_is_none_of_ours_is_not_passed_on(caplog):
    async with opened() as (_, issuer, identity):
        issuer.error = IdentityError(SECRET, SECRET)
        await asyncio.sleep(2 * LIFE)
        assert identity.status().last_error == "ISSUER_UNAVAILABLE"
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    "changes",
    [
        {"not_after": EPOCH},
        {"not_before": 2 * EPOCH, "not_after": 3 * EPOCH},
        {"not_before": float("nan")},
        {"not_after": float("nan")},
    ],
    ids=["over", "not yet", "no beginning", "no end"],
)
@in_virtual_time
async def test_an_identity_that_is_not_valid_now_is_not_taken(changes):
    async with opened() as (_, issuer, identity):
        first, make = identity.current, issuer.make
        issuer.make = lambda: make(**changes)
        with pytest.raises(IdentityError, match="EXPIRED"):
            await identity.renew("a test")
        await asyncio.sleep(0.7 * LIFE)
        assert identity.current is first
        assert identity.status().failures > 1
        issuer.make = make
        assert await identity.wait(1) == 2
        assert identity.current is not first


@in_virtual_time
async def test_a_key_is_never_used_for_a_second_identity():
    async with opened() as (_, issuer, identity):
        key, make = identity.current.key, issuer.make
        issuer.make = lambda: make(key=key)
        with pytest.raises(IdentityError, match="once more"):
            await identity.renew("a test")
        assert identity.generation == 1


@in_virtual_time
async def test_a_source_that_gives_nonsense():
    async with opened() as (_, issuer, identity):
        issuer.make = lambda: None
        with pytest.raises(IdentityError, match="AttributeError"):
            await identity.renew("a test")
        assert reason(identity) is None


@in_virtual_time
async def test_a_clock_that_raises_for_a_while_does_not_end_rotation(caplog):
    clock = Clock()
    issuer = Issuer(clock)
    broken = False

    def moody() -> float:
        if broken:
            raise OSError(SECRET)
        return clock()

    async with RotatingIdentity(issuer, clock=moody) as identity:
        broken = True
        await asyncio.sleep(5)
        broken = False
        assert await identity.wait(1) == 2
    assert SECRET not in caplog.text


# -- opening and closing -----------------------------------------------------------------------------------------------


@in_virtual_time
async def test_nothing_starts_without_an_identity():
    issuer = Issuer(Clock())
    for error, text in ((unavailable(), "no answer"), (ValueError(SECRET), "ValueError")):
        issuer.error = error
        with pytest.raises(IdentityError, match=text):
            await RotatingIdentity(issuer, clock=issuer.clock).__aenter__()
    issuer.error, issuer.hangs = None, True
    start = asyncio.get_running_loop().time()
    with pytest.raises(IdentityError, match="TimeoutError"):
        await RotatingIdentity(issuer, clock=issuer.clock).__aenter__()
    assert asyncio.get_running_loop().time() == start + 10
    assert issuer.closed == 3
    assert asyncio.all_tasks() == {asyncio.current_task()}


@in_virtual_time
async def test_before_and_after_there_is_none():
    issuer = Issuer(Clock())
    identity = RotatingIdentity(issuer, clock=issuer.clock)
    for _ in range(2):
        assert reason(identity) == "EXPIRED"
        for refused in (identity.wait(0), identity.renew("a test")):
            with pytest.raises(IdentityError, match="not open"):
                await refused
        with pytest.raises(IdentityError, match="not open"):
            identity.status()
        if not issuer.closed:
            assert identity.generation == 0
            async with identity:
                assert (reason(identity), identity.generation) == (None, 1)
    with pytest.raises(IdentityError, match="twice"):
        await identity.__aenter__()
    assert issuer.closed == 1


@pytest.mark.parametrize("state", ["idle", "renewing", "failing"])
@in_virtual_time
async def test_closing_leaves_no_task_no_key_and_no_source(state):
    clock = Clock()
    issuer = Issuer(clock)
    async with RotatingIdentity(issuer, clock=clock) as identity:
        key, issuer.file = identity.current.key, None
        assert key in keys()
        if state == "renewing":
            issuer.hangs = True
            while not issuer.fetching:
                await asyncio.sleep(1)
        if state == "failing":
            issuer.error = unavailable()
            await asyncio.sleep(LIFE)
    assert (issuer.closed, issuer.fetching) == (1, 0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert key not in keys()
    asked = len(issuer.asked)
    await asyncio.sleep(3 * LIFE)
    assert len(issuer.asked) == asked


@in_virtual_time
async def test_a_rotated_identity_is_let_go():
    async with opened() as (_, _, identity):
        old = identity.current.key
        assert old in keys()
        await identity.wait(1)
        assert old not in keys()
        assert identity.current.key in keys()


@in_virtual_time
async def test_cancelling_who_opens_is_clean():
    clock = Clock()
    issuer = Issuer(clock)
    issuer.hangs = True
    opening = asyncio.create_task(RotatingIdentity(issuer, clock=clock).__aenter__())
    await asyncio.sleep(1)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert (issuer.closed, issuer.fetching) == (1, 0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


@in_virtual_time
async def test_a_source_that_does_not_close_is_left(caplog):
    clock = Clock()
    issuer = Issuer(clock)

    async def close() -> None:
        raise OSError(SECRET)

    issuer.close = close
    async with RotatingIdentity(issuer, clock=clock):
        pass
    issuer.close = lambda: asyncio.sleep(1e9)
    async with RotatingIdentity(issuer, clock=clock):
        start = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() <= start + 6
    assert len(warnings(caplog)) == 2
    assert SECRET not in caplog.text


# -- renewing by hand, and waiting -------------------------------------------------------------------------------------


@in_virtual_time
async def test_renewing_by_hand():
    async with opened() as (_, issuer, identity):
        await asyncio.sleep(0.3 * LIFE)
        await identity.renew("a test")
        assert identity.generation == 2
        by_hand = issuer.asked[-1]
        await identity.wait(2)
        assert issuer.asked[-1] - by_hand >= 0.4 * LIFE  # The schedule begins anew.
        issuer.error = IdentityError("REFUSED", "no")
        current = identity.current
        with pytest.raises(IdentityError, match="REFUSED"):
            await identity.renew("a test")
        assert identity.current is current


@in_virtual_time
async def test_renewals_at_once_are_one():
    async with opened() as (_, issuer, identity):
        await asyncio.gather(*(identity.renew("a test") for _ in range(100)))
        assert (identity.generation, issuer.issued) == (2, 2)


@in_virtual_time
async def test_a_renewal_that_is_cancelled_harms_nobody():
    async with opened() as (_, issuer, identity):
        issuer.hangs = True
        renewing = [asyncio.create_task(identity.renew("a test")) for _ in range(2)]
        await asyncio.sleep(1)
        renewing[0].cancel()
        issuer.hangs = False
        with pytest.raises(asyncio.CancelledError):
            await renewing[0]
        await renewing[1]
        assert identity.generation == 2


@in_virtual_time
async def test_a_renewal_under_way_when_it_is_closed_is_refused():
    async with opened() as (_, issuer, identity):
        issuer.hangs = True
        renewing = asyncio.create_task(identity.renew("a test"))
        await asyncio.sleep(1)
    with pytest.raises(IdentityError, match="not open"):
        await renewing


@in_virtual_time
async def test_all_who_wait_are_woken():
    async with opened() as (_, _, identity):
        assert await identity.wait(0) == 1
        waiting = [asyncio.create_task(identity.wait(1)) for _ in range(50)]
        patient = asyncio.create_task(identity.wait(2))
        given_up = asyncio.create_task(identity.wait(1))
        await asyncio.sleep(1)
        given_up.cancel()
        await identity.renew("a test")
        assert await asyncio.gather(*waiting) == [2] * 50
        assert not patient.done()
        await identity.renew("a test")
        assert await patient == 3
        last = asyncio.create_task(identity.wait(3))
        await asyncio.sleep(1)
    with pytest.raises(IdentityError, match="not open"):
        await last


# -- sources that follow -----------------------------------------------------------------------------------------------


@in_virtual_time
async def test_what_others_renew_is_taken_at_once_and_only_once():
    async with opened(follows=True) as (_, issuer, identity):
        await asyncio.sleep(100)
        assert 90 <= len(issuer.asked) <= 101
        assert identity.generation == 1
        assert identity.status().renews_at is None
        issuer.file = issuer.make()
        assert await asyncio.wait_for(identity.wait(1), 1.1) == 2
        assert identity.current is issuer.file
        issuer.file = issuer.make(
            certificates=issuer.file.certificates, key=issuer.file.key, trust_bundle=b"roots"
        )
        assert await asyncio.wait_for(identity.wait(2), 1.1) == 3
        # Read again, it is another object and still the same identity.
        issuer.file = issuer.make(
            certificates=issuer.file.certificates, key=issuer.file.key, trust_bundle=b"roots"
        )
        await asyncio.sleep(10)
        assert identity.generation == 3
        with pytest.raises(IdentityError, match="no other"):
            await identity.renew("a test")
        assert identity.status().failures == 0


@in_virtual_time
async def test_what_others_fail_to_renew_is_used_until_it_ends(caplog):
    async with opened(follows=True) as (_, issuer, identity):
        assert await watched(identity, LIFE - 1) == {None}
        await asyncio.sleep(1)
        assert await watched(identity, 100) == {"EXPIRED"}
        assert identity.status().last_error == "EXPIRED"
        issuer.file = issuer.make()
        assert await asyncio.wait_for(identity.wait(1), 31) == 2
        assert reason(identity) is None
    assert len(warnings(caplog)) == 2


@in_virtual_time
async def test_a_new_certificate_with_the_old_key_is_taken_and_told(caplog):
    async with opened(follows=True) as (_, issuer, identity):
        issuer.file = issuer.make(key=issuer.file.key)
        assert await identity.wait(1) == 2
    assert len(warnings(caplog)) == 1
    assert "belong together" in caplog.text


# -- clocks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("off", [-300, -299.5, 300])
@in_virtual_time
async def test_a_clock_that_is_five_minutes_off(off):
    async with opened(off=off) as (clock, issuer, identity):
        for _ in range(20):
            generation = identity.generation
            while identity.generation == generation:
                current = identity.current
                assert current.not_before <= clock.true() < current.not_after, (
                    "a peer with a right clock takes it"
                )
                await asyncio.sleep(1)
        assert len(issuer.asked) == 21


@pytest.mark.parametrize("by", [-300, 300])
@in_virtual_time
async def test_a_clock_that_is_set_five_minutes_in_between(by):
    async with opened() as (clock, issuer, identity):
        await asyncio.sleep(100)
        clock.off = by
        assert await watched(identity, 8 * LIFE, 5) == {None}
        longest = 0.6 * (LIFE - min(0, by)) + 1.1  # A slow clock takes the life for longer than it is.
        assert all(after - before <= longest for before, after in itertools.pairwise(issuer.asked))
        assert identity.generation == issuer.answered() <= 29
        clock.off = 0
        assert await watched(identity, 8 * LIFE, 5) == {None}


@in_virtual_time
async def test_a_clock_that_jumps_beyond_the_end():
    async with opened() as (clock, _, identity):
        await asyncio.sleep(100)
        # The machine slept, say, and its monotonic clock with it. The issuer did not.
        clock.true = lambda loop=clock._loop: EPOCH + loop.time() + 2 * LIFE
        assert reason(identity) == "EXPIRED"
        assert await asyncio.wait_for(identity.wait(1), 1.1) == 2
        assert await watched(identity, 3 * LIFE) == {None}


@in_virtual_time
async def test_a_clock_that_is_wrongly_set_beyond_the_end_and_back():
    async with opened() as (clock, _, identity):
        await asyncio.sleep(100)
        clock.off = 10 * LIFE
        assert await watched(identity, 60) == {"EXPIRED"}
        assert identity.status().last_error == "EXPIRED"
        clock.off = 0
        assert reason(identity) is None
        assert await asyncio.wait_for(identity.wait(1), 31) == 2


@in_virtual_time
async def test_a_clock_that_is_set_back_by_a_day_prolongs_no_life():
    async with opened() as (clock, issuer, identity):
        end = identity.current.not_after
        clock.off = -86400
        # What the issuer gives is not valid yet by that clock: the old one is kept, but no longer than it truly lives.
        assert await watched(identity, end - clock.true() - 0.5) == {None}
        await asyncio.sleep(1)
        assert await watched(identity, LIFE) == {"EXPIRED"}
        assert len(issuer.asked) > 10
        clock.off = 0
        assert await asyncio.wait_for(identity.wait(1), 31) == 2


@in_virtual_time
async def test_a_clock_that_stands_still_stops_nothing():
    clock = Clock()
    issuer = Issuer(clock)
    async with RotatingIdentity(issuer, clock=lambda: EPOCH + 1000.0) as identity:
        await asyncio.sleep(100)
        clock.true = lambda: EPOCH + 1000.0
        await asyncio.sleep(10 * LIFE)
        assert identity.generation >= 16


# -- threads, loops and processes --------------------------------------------------------------------------------------


class Fast(Issuer):
    """In real time."""

    def __init__(self, **options) -> None:
        super().__init__(time.time, **options)

    def make(self, **changes) -> Identity:
        now, number = time.time(), next(numbers)
        return Identity(
            b"certificate %d" % number, b"key %d" % number, b"root", "fleet.example", now, now + LIFE, now
        )

    async def fetch(self) -> Identity:
        self.asked.append(time.time())
        await asyncio.sleep(0)
        return self.make()


async def test_other_threads_read_while_it_rotates():
    faults: list[str] = []
    done = threading.Event()

    def read() -> None:
        while not done.wait(0.0002):
            generation = identity.generation
            current = identity.current
            if current.certificates.split()[1] != current.key.split()[1]:
                faults.append("mixed")
            if identity.status().generation < generation or numbered[current.key] < generation:
                faults.append("went back")

    numbered: dict[bytes, int] = {}

    class Numbering(Fast):
        def make(self, **changes) -> Identity:
            made = super().make()
            numbered[made.key] = len(numbered)  # `file` is number 0.
            return made

    async with RotatingIdentity(Numbering()) as identity:
        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(300):
            await identity.renew("a test")
            await asyncio.sleep(0.001)
        done.set()
        for thread in threads:
            await asyncio.to_thread(thread.join)
        assert identity.generation == 301
    assert not faults


async def test_other_event_loops_wait_and_renew():
    async with RotatingIdentity(Fast()) as identity:
        waiting = asyncio.create_task(asyncio.to_thread(lambda: asyncio.run(identity.wait(1))))
        await asyncio.sleep(0.05)
        await asyncio.to_thread(lambda: asyncio.run(identity.renew("a test")))
        assert await asyncio.wait_for(waiting, 30) == 2

        async def give_up() -> None:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(identity.wait(2), 0.01)

        await asyncio.to_thread(lambda: asyncio.run(give_up()))
        await identity.renew("a test")  # Who gave up, and whose loop is closed, is in nobody's way.
        assert identity.generation == 3


async def test_a_forked_child_has_no_identity():
    issuer = Fast()

    async def close() -> None:
        issuer.closed += 1

    issuer.close = close
    async with RotatingIdentity(issuer) as identity:

        def child():
            with pytest.raises(IdentityError, match="parent") as caught:
                _ = identity.current
            with pytest.raises(IdentityError):
                identity.status()
            return caught.value.reason, identity._latest, identity._open

        assert children.run(child) == ("EXPIRED", None, False)
        assert reason(identity) is None
        await identity.renew("a test")
        assert identity.generation == 2


def test_a_child_that_is_forked_from_a_task_closes_nothing_of_its_parents():
    def both() -> tuple[int, int, int, str | None]:
        """Forks in the middle of rotation; the child leaves the `async with` as its parent does."""
        pid = 1

        async def main() -> tuple[int, int, str | None]:
            nonlocal pid
            issuer = Fast()
            async with RotatingIdentity(issuer, every=0.02) as identity:
                await identity.wait(1)
                pid, before = os.fork(), len(issuer.asked)
                if pid:
                    await identity.wait(identity.generation + 3)
                why = reason(identity)
            return len(issuer.asked) - before, issuer.closed, why

        asked, closed, why = asyncio.SelectorEventLoop().run_until_complete(main())
        if pid == 0:
            os._exit(7 if (asked, closed, why) == (0, 0, "EXPIRED") else 1)
        _, status = os.waitpid(pid, 0)
        return os.waitstatus_to_exitcode(status), asked, closed, why

    code, asked, closed, why = children.run(both)
    assert (code, closed, why) == (7, 1, None)
    assert asked >= 4


@pytest.mark.lazy_tasks
def test_a_fork_inside_of_a_fetch_leaves_the_child_without():
    """A signal handler that forks while the source makes an identity."""

    def run() -> tuple[str | None, str | None]:
        reader, writer = os.pipe()
        pids: list[int] = []

        class Forking(Fast):
            async def fetch(self) -> Identity:
                if len(self.asked) == 1 and not pids:
                    os.kill(os.getpid(), signal.SIGUSR1)
                return await super().fetch()

        signal.signal(signal.SIGUSR1, lambda *_: pids.append(os.fork()))

        async def main() -> str | None:
            identity = RotatingIdentity(Forking())
            await identity.__aenter__()
            with contextlib.suppress(IdentityError):
                await identity.renew("a test")
            return reason(identity) if identity._latest else "nothing held"

        found = asyncio.SelectorEventLoop().run_until_complete(main())
        if pids == [0]:
            os.write(writer, (found or "presents").encode())
            os._exit(0)
        os.waitpid(pids[0], 0)
        return found, os.read(reader, 100).decode()

    assert children.run(run) == (None, "nothing held")


def test_virtual_time_is_what_it_says():
    loop = VirtualLoop()
    try:
        started = time.monotonic()
        loop.run_until_complete(asyncio.sleep(3600))
        assert loop.time() == pytest.approx(4600)
        assert time.monotonic() - started < 30
    finally:
        loop.close()


@pytest.mark.parametrize("closed", [False, True])
def test_a_renewal_does_not_wait_for_an_event_loop_that_has_ended(closed):
    owner = asyncio.new_event_loop()
    identity = RotatingIdentity(Fast())
    owner.run_until_complete(identity.__aenter__())
    if closed:
        tasks = asyncio.all_tasks(owner)
        for task in tasks:
            task.cancel()
        owner.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        owner.close()
    with pytest.raises(IdentityError, match="not open"):
        asyncio.run(asyncio.wait_for(identity.renew("a test"), 30))
    if not closed:
        owner.run_until_complete(identity.__aexit__(None, None, None))
        owner.close()
