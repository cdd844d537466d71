"""A working directory of its own for each test."""

from tests.unit.cli.conftest import workplace, write  # noqa: F401 - fixtures that every test uses
