"""What all unit tests share."""

from tests.support.steady import one_day  # noqa: F401 - a fixture that every test uses
