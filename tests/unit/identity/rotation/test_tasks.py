"""Tasks end together and in an empty context; work in another event loop ends with that loop."""

import asyncio
import contextvars
import threading

import pytest

from dpmesh.identity.rotation.tasks import Tasks, result_in

TRACE = contextvars.ContextVar("trace", default="none")


class Ended(Exception):
    pass


async def test_a_task_begins_in_an_empty_context():
    async def trace():
        return TRACE.get()

    TRACE.set("the caller's")
    assert await Tasks().run(trace(), Ended()) == "none"


async def test_tasks_end_together():
    tasks = Tasks()
    waiting = [asyncio.create_task(tasks.run(asyncio.Event().wait(), Ended())) for _ in range(3)]
    await asyncio.sleep(0.01)
    await tasks.end(10)
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(result) for result in results] == [Ended] * 3


async def test_who_is_cancelled_is_not_told_that_the_tasks_ended():
    tasks = Tasks()
    waiting = asyncio.create_task(tasks.run(asyncio.Event().wait(), Ended()))
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not tasks.ended


async def test_the_result_of_another_event_loop():
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def where():
        return asyncio.get_running_loop()

    try:
        assert await result_in(loop, where(), Ended()) is loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def test_an_event_loop_that_has_stopped_is_not_waited_for():
    loop = asyncio.new_event_loop()

    async def never():
        await asyncio.Event().wait()

    with pytest.raises(Ended):
        await result_in(loop, never(), Ended())

    async def rest():
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}), return_exceptions=True)

    await asyncio.to_thread(loop.run_until_complete, rest())
    loop.close()
