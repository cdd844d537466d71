"""What the tests of all stores share."""

from tests.support.steady import one_day  # noqa: F401 - a fixture that every test uses
