"""The issuer's keys: their epochs, their file and what they sign."""

import json
import os
import stat
import threading

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from dpmesh.errors import ConfigError, IdentityError
from dpmesh.identity.tokens import (
    PublishedKey,
    TokenKeys,
    TokenRequestState,
    encode_key,
)
from dpmesh.identity.tokens import keys as token_keys
from tests.support import children
from tests.support.tokens import CHALLENGE, DAY, START, Clock, reason


def test_there_is_a_key_for_this_epoch_and_the_next():
    clock = Clock()
    keys = TokenKeys(clock=clock)
    first, second = keys.published(clock.now)
    assert (first.not_before, first.not_after) == (START, START + DAY + 3600)
    assert (second.not_before, second.not_after) == (START + DAY, START + 2 * DAY + 3600)
    assert keys.current(clock.now) == first
    assert first.truncated_key_id != second.truncated_key_id

    clock.now = START + DAY  # the next epoch: the first key's tokens are taken for another hour
    assert keys.current(clock.now) == second
    assert keys.published(clock.now)[:2] == [first, second]
    assert len(keys.published(clock.now)) == 3
    clock.now = START + DAY + 3600
    assert [key.not_before for key in keys.published(clock.now)] == [START + DAY, START + 2 * DAY]
    assert keys.published(clock.now)[0] == second


def test_a_key_that_is_over_signs_no_more():
    clock = Clock()
    keys = TokenKeys(clock=clock)
    first, second = keys.published(clock.now)
    for key in (first, second):
        state = TokenRequestState(key, CHALLENGE, 1)
        (held,) = state.finalize([keys.sign(key.truncated_key_id, state.blinded_messages[0])])
        assert (held.not_before, held.not_after) == (key.not_before, key.not_after)
    missing = next(i for i in range(256) if i not in (first.truncated_key_id, second.truncated_key_id))
    assert reason(keys.sign, missing, bytes(256)) == "EXPIRED"
    assert reason(keys.sign, first.truncated_key_id, bytes(255)) == "MALFORMED"
    clock.now = START + DAY + 3600
    published = keys.published(clock.now)
    if first.truncated_key_id not in {key.truncated_key_id for key in published}:
        assert reason(keys.sign, first.truncated_key_id, bytes(256)) == "EXPIRED"


def test_no_two_keys_in_force_have_one_truncated_id(monkeypatch):
    one, *others = (rsa.generate_private_key(65537, 2048) for _ in range(4))
    ids = {key: PublishedKey(encode_key(key.public_key()), 0, 1).truncated_key_id for key in (one, *others)}
    other = next(key for key in others if ids[key] != ids[one])  # fails once in 2^24 runs
    candidates = iter([one, one, one, other])
    monkeypatch.setattr(token_keys.rsa, "generate_private_key", lambda *_: next(candidates))
    first, second = TokenKeys().published(START)
    assert [first.public_key, second.public_key] == [encode_key(k.public_key()) for k in (one, other)]


def test_lengths_of_another_form_are_refused():
    for bad in (
        {"epoch": 0},
        {"epoch": 0.5},
        {"epoch": float("inf")},
        {"overlap": -1},
        {"epoch": 10},
        {"overlap": 1.5},
    ):
        with pytest.raises(ConfigError, match="token keys"):
            TokenKeys(**bad)
    for now in (-1.0, float("nan"), float("inf")):
        assert reason(TokenKeys().published, now) == "ISSUER_UNAVAILABLE"


def test_threads_that_need_a_key_at_once_get_the_same(clock):
    keys, got = TokenKeys(clock=clock), []
    threads = [threading.Thread(target=lambda: got.append(keys.published(clock.now))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 4
    assert all(each == got[0] for each in got)


def test_a_file_keeps_keys_and_only_its_owner_may_read_it(tmp_path, clock):
    path = tmp_path / "sub" / "keys.json"
    old = os.umask(0)
    try:
        first = TokenKeys(path, clock=clock).published(clock.now)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert os.listdir(path.parent) == ["keys.json"]
    again = TokenKeys(path, overlap=60, clock=clock)  # another overlap holds for keys to come
    assert again.published(clock.now) == first
    clock.now += DAY
    third = again.published(clock.now)[-1]
    assert third.not_after - third.not_before == DAY + 60
    clock.now += DAY + 3600
    again.published(clock.now)
    stored = json.loads(path.read_text())["keys"]
    assert [entry["not_before"] for entry in stored] == [START + 2 * DAY, START + 3 * DAY]


def test_processes_that_share_a_file_have_the_same_keys(tmp_path, clock):
    path = tmp_path / "keys.json"
    started = [children.start(lambda: TokenKeys(path, clock=clock).published(clock.now)) for _ in range(3)]
    first, *others = [children.finish(child) for child in started]
    assert all(other == first for other in others)


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_a_file_that_others_may_read_is_not_used(tmp_path, clock, mode):
    path = tmp_path / "keys.json"
    TokenKeys(path, clock=clock).published(clock.now)
    path.chmod(mode)
    with pytest.raises(IdentityError, match="chmod 600"):
        TokenKeys(path, clock=clock).published(clock.now)


def test_a_bad_file_is_not_used_and_not_quoted(tmp_path, clock):
    path = tmp_path / "keys.json"
    TokenKeys(path, clock=clock).published(clock.now)
    good = path.read_text()
    for bad in ("", "secret-garbage", "[]", "{}", good[:-10], good.replace("PRIVATE", "PRIVAT")):
        path.write_text(bad)
        with pytest.raises(IdentityError, match="not a file of token keys") as caught:
            TokenKeys(path, clock=clock).published(clock.now)
        assert "secret" not in str(caught.value)
        assert path.read_text() == bad
    path.write_text(good)
    with pytest.raises(IdentityError, match="another length"):
        TokenKeys(path, epoch=3600, overlap=60, clock=clock).published(clock.now)
    path.unlink()
    path.symlink_to(tmp_path / "other")
    assert reason(TokenKeys(path, clock=clock).published, clock.now) == "ISSUER_UNAVAILABLE"
