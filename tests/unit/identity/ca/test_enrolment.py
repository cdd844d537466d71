"""The issuer's records: tokens that serve once, devices, revocation and allowances, all of it durable."""

import hashlib
import re
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from dpmesh.errors import ConfigError, IdentityError
from dpmesh.identity.ca import enrolment
from dpmesh.identity.ca.enrolment import TOKEN_LIFE, Enrolments
from tests.support import children
from tests.support.enrolments import LATER, NOW, enrolled, fingerprint, proof, reason

EPOCH = b"epoch"


def content(path):
    """All bytes of the file and its log."""
    return b"".join(part.read_bytes() for part in path.parent.iterdir())


def test_tokens_are_128_random_bits_that_are_safe_in_urls(enrolments):
    tokens = [enrolments.invite(now=NOW).token for _ in range(100)]
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{22}", token) for token in tokens)
    assert len(set(tokens)) == 100


def test_only_the_hash_of_a_token_is_on_disk(enrolments, path):
    token = enrolments.invite(now=NOW).token
    found = content(path)
    assert hashlib.sha256(token.encode()).digest() in found
    assert token.encode() not in found
    assert token.encode().hex().encode() not in found


def test_an_invitation_does_not_show(enrolments):
    invitation = enrolments.invite(now=NOW)
    shown = f"{invitation!r} {invitation}"
    assert invitation.token not in shown
    assert invitation.device not in shown


def test_a_token_serves_once(enrolments):
    token = enrolments.invite(now=NOW).token
    enrolments.enrol(token, fingerprint("a"), LATER, now=NOW)
    assert reason(enrolments.enrol, token, fingerprint("b"), LATER, now=NOW) == "REFUSED"
    assert reason(enrolments.renew, proof("b"), fingerprint("c"), LATER, now=NOW) == "REFUSED"


def test_a_token_serves_once_in_a_race_of_a_hundred(enrolments, path):
    """Half of them through another connection to the file, as from another process."""
    other = Enrolments(path)
    token = enrolments.invite(now=NOW).token
    line = threading.Barrier(100)

    def attempt(number):
        line.wait()
        try:
            (enrolments, other)[number % 2].enrol(token, fingerprint(number), LATER, now=NOW)
        except IdentityError as error:
            return error.reason
        return "enrolled"

    with ThreadPoolExecutor(100) as threads:
        results = list(threads.map(attempt, range(100)))
    other.close()
    assert sorted(results) == ["REFUSED"] * 99 + ["enrolled"]
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM certificates").fetchone() == (1,)


def test_a_token_is_over_after_its_life(enrolments):
    last, late = enrolments.invite(now=NOW, life=60).token, enrolments.invite(now=NOW, life=60).token
    enrolments.enrol(last, fingerprint("a"), LATER, now=NOW + 59.9)
    assert reason(enrolments.enrol, late, fingerprint("b"), LATER, now=NOW + 60) == "REFUSED"
    unasked = enrolments.invite(now=NOW).token
    assert reason(enrolments.enrol, unasked, fingerprint("b"), LATER, now=NOW + TOKEN_LIFE) == "REFUSED"


@pytest.mark.parametrize("token", ["", "x", "é" * 22, "\0", "'; DROP TABLE tokens; --", "A" * 100_000])
def test_other_text_is_no_token(enrolments, token):
    enrolments.invite(now=NOW)
    assert reason(enrolments.enrol, token, fingerprint("a"), LATER, now=NOW) == "REFUSED"


@pytest.mark.parametrize("life", [0, -1, float("nan"), float("inf")])
def test_a_tokens_life_is_a_positive_number(enrolments, life):
    with pytest.raises(ConfigError, match="life"):
        enrolments.invite(now=NOW, life=life)


def test_every_refusal_of_a_token_reads_the_same(enrolments):
    used, over = enrolments.invite(now=NOW).token, enrolments.invite(now=NOW, life=1).token
    enrolments.enrol(used, fingerprint("a"), LATER, now=NOW)
    texts = set()
    for token in (used, over, "unknown"):
        with pytest.raises(IdentityError) as caught:
            enrolments.enrol(token, fingerprint("b"), LATER, now=NOW + 2)
        texts.add(str(caught.value))
    assert len(texts) == 1
    assert not any(token in text for token in (used, over) for text in texts)


def test_renewals_follow_each_other_and_may_fork(enrolments):
    """An answer that is lost on the way does not end a device: it renews from the certificate it has."""
    enrolled(enrolments, "a")
    enrolments.renew(proof("a", 1), fingerprint("lost"), LATER, now=NOW)
    enrolments.renew(proof("a", 2), fingerprint("b"), LATER, now=NOW)
    enrolments.renew(proof("b"), fingerprint("c"), LATER, now=NOW)


def test_a_certificate_is_known_until_it_ends(enrolments):
    enrolled(enrolments, "a")
    enrolments.renew(proof("a", 1), fingerprint("b"), LATER + 1000, now=LATER - 0.1)
    assert reason(enrolments.renew, proof("a", 2), fingerprint("c"), LATER + 1000, now=LATER) == "REFUSED"
    enrolments.renew(proof("b"), fingerprint("c"), LATER + 1000, now=LATER)


def test_a_proof_serves_once(enrolments):
    enrolled(enrolments, "a")
    enrolments.renew(proof("a"), fingerprint("b"), LATER, now=NOW)
    assert reason(enrolments.renew, proof("a"), fingerprint("c"), LATER, now=NOW) == "REFUSED"
    assert reason(enrolments.allow, proof("a"), EPOCH, 1, 10, LATER, now=NOW) == "REFUSED"


def test_a_revoked_device_neither_enrols_nor_renews_nor_gets_tokens(enrolments):
    device = enrolled(enrolments, "a")
    other = enrolled(enrolments, "other")
    again = enrolments.invite(now=NOW, device=device)
    enrolments.revoke(device)
    assert reason(enrolments.renew, proof("a", 1), fingerprint("b"), LATER, now=NOW) == "REFUSED"
    assert reason(enrolments.allow, proof("a", 2), EPOCH, 1, 10, LATER, now=NOW) == "REFUSED"
    assert reason(enrolments.enrol, again.token, fingerprint("b"), LATER, now=NOW) == "REFUSED"
    assert reason(enrolments.invite, now=NOW, device=device) == "REFUSED"
    enrolments.revoke(device)
    enrolments.renew(proof("other"), fingerprint("c"), LATER, now=NOW)
    assert other != device


def test_an_invitation_can_be_revoked_before_its_use(enrolments):
    invitation = enrolments.invite(now=NOW)
    enrolments.revoke(invitation.device)
    assert reason(enrolments.enrol, invitation.token, fingerprint("a"), LATER, now=NOW) == "REFUSED"


@pytest.mark.parametrize("device", ["", "00" * 16, "x", "é"])
def test_unknown_devices(enrolments, device):
    assert reason(enrolments.revoke, device) == "REFUSED"
    assert reason(enrolments.invite, now=NOW, device=device) == "REFUSED"


def test_an_allowance_ends(enrolments):
    enrolled(enrolments, "a")
    enrolled(enrolments, "b")
    enrolments.allow(proof("a", 1), EPOCH, 7, 10, LATER, now=NOW)
    assert reason(enrolments.allow, proof("a", 2), EPOCH, 4, 10, LATER, now=NOW) == "RATE_LIMITED"
    enrolments.allow(proof("a", 3), EPOCH, 3, 10, LATER, now=NOW)
    assert reason(enrolments.allow, proof("a", 4), EPOCH, 1, 10, LATER, now=NOW) == "RATE_LIMITED"
    enrolments.allow(proof("b", 1), EPOCH, 10, 10, LATER, now=NOW)
    enrolments.allow(proof("a", 5), b"next epoch", 10, 10, LATER, now=NOW)


def test_neither_a_new_certificate_nor_a_new_token_refills_an_allowance(enrolments):
    device = enrolled(enrolments, "a")
    enrolments.allow(proof("a", 1), EPOCH, 10, 10, LATER, now=NOW)
    enrolments.renew(proof("a", 2), fingerprint("b"), LATER, now=NOW)
    assert reason(enrolments.allow, proof("b"), EPOCH, 1, 10, LATER, now=NOW) == "RATE_LIMITED"
    token = enrolments.invite(now=NOW, device=device).token
    enrolments.enrol(token, fingerprint("c"), LATER, now=NOW)
    assert reason(enrolments.allow, proof("c"), EPOCH, 1, 10, LATER, now=NOW) == "RATE_LIMITED"


def test_an_allowance_is_exact_in_a_race(enrolments):
    enrolled(enrolments, "a")

    def attempt(number):
        try:
            enrolments.allow(proof("a", number), EPOCH, 1, 25, LATER, now=NOW)
        except IdentityError as error:
            return error.reason
        return "allowed"

    with ThreadPoolExecutor(50) as threads:
        results = list(threads.map(attempt, range(100)))
    assert sorted(results) == ["RATE_LIMITED"] * 75 + ["allowed"] * 25


def test_a_clock_that_is_set_forward_and_back_refills_no_allowance(enrolments):
    device = enrolled(enrolments, "a")
    enrolments.allow(proof("a"), EPOCH, 10, 10, LATER, now=NOW)
    enrolments.invite(now=LATER + 86_400)
    token = enrolments.invite(now=NOW, device=device).token
    enrolments.enrol(token, fingerprint("b"), LATER, now=NOW)
    assert reason(enrolments.allow, proof("b"), EPOCH, 1, 10, LATER, now=NOW) == "RATE_LIMITED"


def test_what_is_over_is_dropped_and_overwritten(enrolments, path):
    enrolled(enrolments, "a")
    enrolments.allow(proof("a"), EPOCH, 10, 10, LATER, now=NOW)
    assert fingerprint("a") in content(path)
    enrolments.invite(now=NOW + 100 * 86_400)
    with sqlite3.connect(path) as connection:
        counts = [
            connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for table in ("tokens", "certificates", "proofs", "allowances")
        ]
        assert counts == [1, 0, 0, 0]
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert fingerprint("a") not in content(path)


def test_what_a_killed_process_has_done_is_done(path):
    """It ends without closing anything, as by a signal."""
    Enrolments.create(path).close()

    def work():
        records = Enrolments(path)
        token = records.invite(now=NOW).token
        records.enrol(token, fingerprint("a"), LATER, now=NOW)
        records.allow(proof("a"), EPOCH, 10, 10, LATER, now=NOW)
        return token

    token = children.run(work)
    records = Enrolments(path)
    assert reason(records.enrol, token, fingerprint("b"), LATER, now=NOW) == "REFUSED"
    assert reason(records.allow, proof("a", 1), EPOCH, 1, 10, LATER, now=NOW) == "RATE_LIMITED"
    records.renew(proof("a", 2), fingerprint("b"), LATER, now=NOW)
    records.close()


def test_a_forked_child_is_refused(enrolments):
    token = enrolments.invite(now=NOW).token
    found = children.run(lambda: reason(enrolments.enrol, token, fingerprint("a"), LATER, now=NOW))
    assert found == "ISSUER_UNAVAILABLE"
    enrolments.enrol(token, fingerprint("a"), LATER, now=NOW)


def test_records_that_can_not_be_written_enrol_nobody(enrolments, path):
    token = enrolments.invite(now=NOW).token
    other = sqlite3.connect(path)
    other.execute("DROP TABLE certificates")
    other.commit()
    other.close()
    with pytest.raises(IdentityError) as caught:
        enrolments.enrol(token, fingerprint("a"), LATER, now=NOW)
    assert caught.value.reason == "ISSUER_UNAVAILABLE"
    assert token not in str(caught.value)


def test_closed_records_refuse(enrolments):
    token = enrolments.invite(now=NOW).token
    enrolments.close()
    assert reason(enrolments.enrol, token, fingerprint("a"), LATER, now=NOW) == "ISSUER_UNAVAILABLE"


def test_a_device_has_so_many_certificates_in_force(enrolments, monkeypatch):
    monkeypatch.setattr(enrolment, "_MOST_CERTIFICATES", 3)
    enrolled(enrolments, "a")
    enrolled(enrolments, "other")
    enrolments.renew(proof("a", 1), fingerprint("b"), LATER, now=NOW)
    enrolments.renew(proof("a", 2), fingerprint("c"), LATER + 10, now=NOW)
    assert reason(enrolments.renew, proof("a", 3), fingerprint("d"), LATER, now=NOW) == "RATE_LIMITED"
    assert reason(enrolments.renew, proof("c", 1), fingerprint("d"), LATER, now=NOW) == "RATE_LIMITED"
    enrolments.renew(proof("other"), fingerprint("e"), LATER, now=NOW)
    # Certificates that have ended count no more.
    enrolments.renew(proof("c", 2), fingerprint("d"), LATER + 10, now=LATER)
