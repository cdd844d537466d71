"""The health of a source: what is counted, and that each change of state is logged once."""

import pytest

from dpmesh.identity.rotation.source_health import SourceHealth


@pytest.fixture
def logged(caplog):
    caplog.set_level("WARNING", "dpmesh")
    return lambda: [record.getMessage() for record in caplog.records]


def test_failures_are_counted_until_a_success():
    health = SourceHealth()
    assert health.record_failure("REFUSED") == "REFUSED"
    assert health.record_failure("EXPIRED") == "EXPIRED"
    assert (health.failures, health.last_error) == (2, "EXPIRED")
    health.record_success()
    assert (health.failures, health.last_error) == (0, None)


def test_only_known_reasons_are_counted_and_logged(logged):
    """A source that speaks to a peer might pass on the peer's words."""
    health = SourceHealth()
    assert health.record_failure("device 4711 is unknown") == "ISSUER_UNAVAILABLE"
    health.log_failing(expired=False)
    assert health.last_error == "ISSUER_UNAVAILABLE"
    assert "4711" not in "".join(logged())


def test_each_change_of_state_is_logged_once(logged):
    health = SourceHealth()
    health.record_success()
    health.log_failing(expired=True)
    assert logged() == []  # nothing has failed
    for expired in (False, False, True, True):
        health.record_failure("REFUSED")
        health.log_failing(expired=expired)
    health.record_success()
    health.record_success()
    texts = logged()
    assert len(texts) == 3
    for part, text in zip(("until it ends [REFUSED]", "is over", "works again"), texts, strict=True):
        assert part in text


def test_an_unexpected_exception_is_logged_until_there_is_another_or_none(logged):
    health = SourceHealth()
    for name in ("ValueError", "ValueError", "OSError", None, "OSError"):
        health.log_unexpected(name)
    assert [text.rpartition("(")[2] for text in logged()] == ["ValueError)", "OSError)", "OSError)"]
