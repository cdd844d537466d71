"""What all tests share: the large statistical sizes, and eager tasks, run only when asked for."""

import asyncio
import gc

import pytest
from hypothesis import HealthCheck, settings

from tests.support import children  # noqa: F401 - what it does at forks, it does for all tests

# The same examples in each run, however slow the machine: a run fails for what was changed, not by chance.
settings.register_profile(
    "dpmesh", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("dpmesh")


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="also run the tests marked `full` (large sizes)")
    parser.addoption(
        "--eager-tasks", action="store_true", help="run all event loops with eager tasks (Python 3.12)"
    )


def pytest_configure(config):
    """Gives every event loop of this process eager tasks if --eager-tasks asks for them, as applications may."""
    if not config.getoption("--eager-tasks"):
        return
    if not hasattr(asyncio, "eager_task_factory"):
        raise pytest.UsageError("--eager-tasks needs Python 3.12 or later")
    make = asyncio.BaseEventLoop.__init__

    def eager(loop, *args, **kwargs):
        make(loop, *args, **kwargs)
        loop.set_task_factory(asyncio.eager_task_factory)

    asyncio.BaseEventLoop.__init__ = eager


def pytest_collection_modifyitems(config, items):
    """Leaves out tests marked `lazy_tasks` with --eager-tasks, and those marked `full` unless --full or -m asks for them."""
    if config.getoption("--eager-tasks"):
        _leave_out("lazy_tasks", config, items)
    if config.getoption("--full") or "full" in config.option.markexpr:
        return
    _leave_out("full", config, items)


def pytest_collection_finish():
    """Freezes all modules and tests: with them, each garbage collection takes half a second."""
    gc.collect()
    gc.freeze()


def _leave_out(marker, config, items):
    out = [item for item in items if item.get_closest_marker(marker)]
    if out:
        items[:] = [item for item in items if not item.get_closest_marker(marker)]
        config.hook.pytest_deselected(items=out)


@pytest.fixture(scope="session")
def vectors(pytestconfig):
    """Reads a file of reference values by its name."""
    import json

    return lambda name: json.loads((pytestconfig.rootpath / "tests" / "vectors" / name).read_text())


@pytest.fixture(scope="session")
def postgres():
    """The PostgreSQL server that all tests share, started by the first one that asks for it."""
    from tests.support import postgres

    yield postgres.shared()
    postgres.close_shared()


@pytest.fixture
def database(postgres):
    """The URL of a empty database on the shared server."""
    with postgres.database() as url:
        yield url
