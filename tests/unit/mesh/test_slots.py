"""Slots: what leaves at which moment, by a clock that the test moves."""

from __future__ import annotations

import asyncio

import pytest

from dpmesh.errors import ProtectionError
from dpmesh.mesh.slots import Slots, in_slots
from tests.support.slot_clock import SlotClock


@pytest.fixture
def clock(monkeypatch):
    return SlotClock(monkeypatch)


async def protected(message):
    if message == "bad":
        raise ProtectionError("MISSING_UNIT", "a.B.c", "is missing")
    return message.upper()


async def test_each_slot_is_given_once_and_none_is_caught_up_with(clock):
    slots, given = Slots(1.0), []

    async def count():
        while True:
            await slots.next()
            given.append(clock.time)

    counting = asyncio.create_task(count())
    for moment in (1.0, 2.0, 5.1, 6.0, 7.9, 8.0):  # Late by 2 slots and a tenth, and then by 0.9.
        await clock.pass_until(moment)
        await asyncio.sleep(0)
    assert given == [1.0, 2.0, 6.0, 8.0]
    counting.cancel()


class Left(list):
    """What left, and when; `ended` is what ended it."""

    def __init__(self, clock, requests):
        self.generator = in_slots(Slots(1.0), requests, "cover", protected)
        self.ended = ""
        self._clock = clock
        self.task = asyncio.create_task(self._run())

    async def _run(self):
        try:
            async for message in self.generator:
                self.append((self._clock.time, message))
            self.ended = "end"
        except Exception as error:
            self.ended = type(error).__name__


async def seen(clock, requests, slots):
    left = Left(clock, requests)
    for number in range(1, slots + 1):
        assert left.ended == ""
        await clock.pass_until(float(number))
        for _ in range(20):
            await asyncio.sleep(0)
    return left


async def test_covers_fill_the_slots_between_messages_and_the_end_comes_at_a_slot(clock):
    waiting = asyncio.Event()

    async def requests():
        yield "a"
        yield "b"
        await waiting.wait()

    left = await seen(clock, requests(), 4)
    assert left == [(1.0, "A"), (2.0, "B"), (3.0, "COVER"), (4.0, "COVER")]
    waiting.set()
    await clock.pass_until(5.0)  # The cover of this slot was released before the stream ended.
    await clock.pass_until(6.0)
    await left.task
    assert (left[4:], left.ended, clock.time) == ([(5.0, "COVER")], "end", 6.0)


@pytest.mark.parametrize(("last", "why"), [("bad", "ProtectionError"), (None, "ZeroDivisionError")])
async def test_a_refusal_and_an_error_of_the_stream_come_at_a_slot(clock, last, why):
    async def requests():
        yield "a"
        if last:
            yield last
        raise ZeroDivisionError

    left = await seen(clock, requests(), 2)
    assert (left, left.ended) == ([(1.0, "A")], why)


async def test_a_message_is_taken_when_the_one_before_was_released(clock):
    async def requests():
        message = []
        for number in range(3):
            message[:] = [number]
            yield message

    async def copied(message):
        return list(message)

    left = []
    async with asyncio.TaskGroup() as group:

        async def run():
            async for message in in_slots(Slots(1.0), requests(), ["cover"], copied):
                left.append(message)

        task = group.create_task(run())
        for number in range(1, 5):
            await clock.pass_until(float(number))
            for _ in range(20):
                await asyncio.sleep(0)
        assert task.done()
    assert left == [[0], [1], [2]]


async def test_closed_in_the_middle_it_stops_reading(clock):
    ended = asyncio.Event()

    async def requests():
        try:
            await asyncio.Event().wait()
            yield
        finally:
            ended.set()

    left = await seen(clock, requests(), 2)
    left.task.cancel()
    await ended.wait()
    assert left == [(1.0, "COVER"), (2.0, "COVER")]
