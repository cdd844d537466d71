"""The clock that nobody can set, also on systems that do not count the time of sleep."""

import time

from dpmesh.clocks import since_boot


def test_it_only_grows():
    assert since_boot() <= since_boot()


def test_it_works_where_the_system_does_not_count_the_time_of_sleep(monkeypatch):
    monkeypatch.delattr(time, "CLOCK_BOOTTIME", raising=False)
    assert since_boot() <= time.monotonic()
