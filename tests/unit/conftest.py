"""What all unit tests share."""

from tests.support.steady import no_pauses, one_day  # noqa: F401 - fixtures that every test uses
