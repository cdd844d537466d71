"""Tickets: their holder, their life and their form."""

import pytest

from dpmesh.errors import ConfigError
from dpmesh.identity.tokens import Tickets, tickets
from tests.support.tokens import CHALLENGE, reason

HOLDER = b"h" * 32


def made(clock, secret=b"s" * 32, service=CHALLENGE.digest, life=600.0):
    return Tickets(secret, service, life=life, clock=clock)


def test_a_ticket_admits_its_holder_until_it_is_over(clock):
    ticket = made(clock).issue(HOLDER)
    assert ticket.isascii()
    assert tickets.ticket_life(ticket) == 600.0
    made(clock).check(ticket, HOLDER)  # another replica's
    clock.now += 599
    made(clock).check(ticket, HOLDER)
    clock.now += 1
    assert reason(made(clock).check, ticket, HOLDER) == "TOKEN_INVALID"


def test_a_ticket_of_somebody_else_is_refused(clock):
    ticket = made(clock).issue(HOLDER)
    for other, holder in (
        (made(clock), b"i" * 32),
        (made(clock), b""),
        (made(clock, secret=b"t" * 32), HOLDER),
        (made(clock, service=b"u" * 32), HOLDER),
    ):
        assert reason(other.check, ticket, holder) == "TOKEN_INVALID"


def test_a_changed_ticket_is_refused(clock):
    ticket = made(clock).issue(HOLDER)
    for i in range(len(ticket)):
        changed = ticket[:i] + ("A" if ticket[i] != "A" else "B") + ticket[i + 1 :]
        assert reason(made(clock).check, changed, HOLDER) == "TOKEN_INVALID"
    for bad in ("", ticket[:-4], ticket + "AAAA", "!" * 80, "\u00e4" * 80, "=" * 80):
        assert reason(made(clock).check, bad, HOLDER) == "TOKEN_INVALID"
    assert reason(tickets.ticket_life, "no ticket") == "TOKEN_INVALID"


def test_no_two_tickets_are_alike(clock):
    assert len({made(clock).issue(HOLDER) for _ in range(1000)}) == 1000


@pytest.mark.parametrize("life", [0.0, -1.0, float("nan"), float("inf")])
def test_a_ticket_s_life_is_a_time(clock, life):
    with pytest.raises(ConfigError):
        made(clock, life=life)
