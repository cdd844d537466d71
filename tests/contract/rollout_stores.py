"""The contract of stores of a push service."""

import asyncio
import random
from collections import Counter

import pytest

from dpmesh.errors import RolloutStoreError
from dpmesh.rollout.push.counts import KEPT_EPOCHS, Answer
from dpmesh.rollout.push.halting import Round
from dpmesh.rollout.push.published import Published
from dpmesh.rollout.push.reports import OutcomeReport, RefusalReport
from dpmesh.rollout.push.store import open_store

DIGEST = b"\1" * 32


def outcome(device, epoch=5, *, taken=True, reason="", digest=DIGEST):
    return OutcomeReport(epoch, digest, device.to_bytes(16, "big"), taken, reason)


class RolloutStoreSuite:
    """A class that inherits it has a fixture `url`, the URL of a store that does not exist yet."""

    @pytest.fixture
    async def opened(self, url):
        stores = []

        async def another(*, create=True):
            store = open_store(url)
            stores.append(store)
            await store.open(create=create)
            return store

        yield another
        for store in stores:
            await store.close()

    @pytest.fixture
    async def store(self, opened):
        store = await opened()
        await store.publish(Published(9, 5, DIGEST, 0.05, (4, b"\2" * 32)))
        return store

    async def test_what_is_reported_is_counted_and_stays(self, store, opened):
        reports = [
            outcome(1),
            outcome(2, taken=False, reason="bad"),
            outcome(1),
            outcome(3, 4),
            outcome(4, 7),
        ]
        answers = await store.count_outcomes(reports)
        assert answers == [Answer.COUNTED] * 4 + [Answer.UNKNOWN_EPOCH]
        await store.count_outcomes(
            [outcome(2), outcome(5, digest=b"\3" * 32), outcome(6, taken=False, reason="x")]
        )
        await store.close()
        newest, former = await (await opened(create=False)).counts()
        assert (newest.epoch, newest.digest, newest.share, newest.halted) == (5, DIGEST, 0.05, "")
        assert (newest.acks, newest.others, newest.nacks) == (2, 1, {"x": 1})
        assert (former.epoch, former.acks, former.others, former.share) == (4, 0, 1, 1.0)

    async def test_the_first_answer_of_a_device_in_a_round_counts(self, store):
        def answer(device, epoch, refused, number=9):
            return RefusalReport(number, epoch, device.to_bytes(16, "big"), refused)

        await store.count_refusals(5, [answer(1, 5, True), answer(1, 5, False), answer(2, 4, False)])
        await store.count_refusals(5, [answer(3, 3, True), answer(2, 5, True), answer(1, 5, True, 10)])
        newest = (await store.counts())[0]
        assert list(newest.rounds) == [Round(1, 1, 2, 1), Round(1, 1, 0, 0)]
        await store.publish(Published(10, 5, DIGEST, 0.2))
        await store.count_refusals(5, [answer(1, 5, True, 10)])
        assert list((await store.counts())[0].rounds) == list(newest.rounds)

    async def test_an_epoch_is_halted_once(self, store):
        assert [await store.halt(5, "why"), await store.halt(5, "again"), await store.halt(6, "x")] == [
            True,
            False,
            False,
        ]
        await store.publish(Published(10, 5, DIGEST, 0.0))
        newest = (await store.counts())[0]
        assert (newest.halted, newest.share) == ("why", 0.0)

    async def test_old_epochs_are_forgotten_with_all_that_was_reported_of_them(self, store):
        await store.count_outcomes([outcome(1, 4), outcome(1, 5)])
        for epoch in range(6, 6 + KEPT_EPOCHS):
            await store.publish(Published(epoch + 10, epoch, DIGEST))
        assert [each.epoch for each in await store.counts()] == list(range(5 + KEPT_EPOCHS, 5, -1))
        assert await store.count_outcomes([outcome(1, 4)]) == [Answer.UNKNOWN_EPOCH]

    async def test_services_that_share_a_store_count_each_device_once(self, store, opened):
        """Two services and 200 devices, each of which reports to both, several times, at once."""
        other, rng = await opened(), random.Random(5)
        last = {}
        for _ in range(6):
            batches = []
            for service in (store, other):
                devices = rng.sample(range(200), 60)
                batch = [outcome(n, taken=rng.random() < 0.5, reason="r") for n in devices]
                batches.append((service, batch))
            # Devices of both batches say the same, so that it does not matter which is counted last.
            said = {each.pseudonym: each for _, batch in batches for each in batch}
            await asyncio.gather(
                *(
                    service.count_outcomes([said[each.pseudonym] for each in batch])
                    for service, batch in batches
                )
            )
            last |= said
        expected = Counter(each.taken for each in last.values())
        (newest, *_) = await store.counts()
        assert (newest.acks, newest.refused) == (expected[True], expected[False])

    async def test_a_batch_of_a_thousand(self, store):
        await store.count_outcomes([outcome(n) for n in range(1000)])
        await store.count_outcomes([outcome(n, taken=False, reason="late") for n in range(500, 1500)])
        newest = (await store.counts())[0]
        assert (newest.acks, newest.refused) == (500, 1000)

    async def test_a_store_that_is_not_there_is_an_error(self, opened):
        with pytest.raises(RolloutStoreError):
            await opened(create=False)
