"""The file of the issuer's records: whose it is, what is refused, and files of older versions."""

import os
import sqlite3
import stat

import pytest

from dpmesh.errors import ConfigError, IdentityError
from dpmesh.identity.ca.enrolment import Enrolments
from tests.support.enrolments import LATER, NOW, enrolled, fingerprint, proof, reason


def test_the_file_is_for_its_owner_only(enrolments, path):
    enrolments.invite(now=NOW)
    files = list(path.parent.iterdir())
    assert path in files
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
def test_a_file_that_others_can_open_is_refused(path, mode):
    Enrolments.create(path).close()
    path.chmod(mode)
    with pytest.raises(IdentityError, match="chmod") as caught:
        Enrolments(path)
    assert caught.value.reason == "MALFORMED"


def test_creating_never_overwrites(enrolments, path):
    token = enrolments.invite(now=NOW).token
    with pytest.raises(ConfigError, match="exists"):
        Enrolments.create(path)
    enrolments.enrol(token, fingerprint("a"), LATER, now=NOW)


def test_files_that_are_not_the_records(path):
    assert reason(Enrolments, path) == "MALFORMED"
    for text in (b"", b"not a database at all, but long enough to have a header" * 10):
        path.write_bytes(text)
        path.chmod(0o600)
        assert reason(Enrolments, path) == "MALFORMED"
        os.remove(path)
    Enrolments.create(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(IdentityError, match="version"):
        Enrolments(path)


def test_a_file_from_before_certificates_were_counted(enrolments, path):
    enrolled(enrolments, "a")
    enrolments.close()
    with sqlite3.connect(path) as connection:
        connection.execute("DROP INDEX certificates_device")
    connection.close()
    again = Enrolments(path)
    again.renew(proof("a"), fingerprint("b"), LATER, now=NOW)
    plan = again._connection.execute(
        "EXPLAIN QUERY PLAN SELECT count(*) FROM certificates WHERE device = ? AND ? < not_after", (b"", 0)
    ).fetchall()
    again.close()
    assert "certificates_device" in str(plan)
