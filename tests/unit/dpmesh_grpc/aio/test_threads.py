"""Threads that wait for a coroutine in an event loop: they get what it gives, and outlast the loop."""

import asyncio
import threading

import pytest

from dpmesh.errors import LedgerError
from dpmesh_grpc.aio.threads import result_of


def running():
    """An event loop in a thread of its own, and the thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    return loop, thread


def test_a_thread_gets_the_result_or_the_error_of_what_it_waits_for():
    loop, thread = running()

    async def slow():
        await asyncio.sleep(1.2)  # Longer than the thread waits before it looks at the loop.
        return 7

    async def late():
        raise TimeoutError("its own")

    try:
        assert result_of(slow(), loop) == 7
        with pytest.raises(TimeoutError, match="its own"):
            result_of(late(), loop)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_a_thread_does_not_wait_for_a_loop_that_ends():
    loop, thread = running()

    async def never():
        loop.call_soon(loop.stop)
        await asyncio.sleep(3600)

    with pytest.raises(LedgerError, match="has ended"):
        result_of(never(), loop)
    thread.join()
    loop.run_until_complete(asyncio.gather(*asyncio.all_tasks(loop), return_exceptions=True))
    loop.close()
    with pytest.raises(LedgerError, match="has ended"):
        result_of(never(), loop)
