"""Pseudonyms: equal within an epoch, namespace and consumer, and unlinkable beyond; never many in memory."""

import hashlib
import hmac

import pytest

from dpmesh.ledger import EpochKey
from dpmesh.mesh.pseudonyms import Pseudonyms


class Keys:
    """A ledger that holds keys: by default one for each length of epochs."""

    def __init__(self, seed=b"s"):
        self._seed = seed
        self._held = {}

    def epoch_key(self, epoch):
        return self._held.get(epoch) or self.put(epoch, 10)

    def put(self, epoch, number):
        key = hashlib.sha256(b"%s %d %d" % (self._seed, epoch, number)).digest()
        self._held[epoch] = EpochKey(number, key)
        return self._held[epoch]


def test_an_id_has_one_pseudonym_for_each_epoch_and_length():
    keys = Keys()
    of = Pseudonyms(keys).to("")
    first, other = of(b"N1", 100.0), of(b"N1", 200.0)
    assert (of(b"N1", 100.0), of(b"N1", 200.0)) == (first, other)
    assert len({first, other, of(b"N2", 100.0)}) == 3
    keys.put(100.0, 11)
    assert of(b"N1", 100.0) != first
    assert of(b"N1", 200.0) == other


def test_it_is_hmac_sha_256_under_a_key_of_the_epoch_the_namespace_and_the_consumer():
    key = hmac.digest(Keys().epoch_key(100.0).key, b"dpmesh pseudonym 5 tripsacme", "sha256")
    expected = hmac.new(key, b"N1", hashlib.sha256).digest()[:16]
    assert Pseudonyms(Keys()).to("acme")(b"N1", 100.0, "trips") == expected


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (("acme", "trips"), ("globex", "trips")),
        (("acme", "trips"), ("acme", "cars")),
        (("", "trips"), ("", "")),
        # Moving letters from one name to the other gives other keys.
        (("acme", "trips"), ("sacme", "trip")),
        (("5 trips", ""), ("", "5 trips")),
    ],
)
def test_consumers_and_namespaces_have_no_pseudonym_in_common(left, right):
    pseudonyms = Pseudonyms(Keys())
    ids = [b"%d" % number for number in range(100)]
    mine, theirs = (
        {pseudonyms.to(consumer)(each, 100.0, namespace) for each in ids}
        for consumer, namespace in (left, right)
    )
    assert len(mine | theirs) == 200


def test_replicas_with_one_ledger_agree_and_ledgers_do_not():
    made = [Pseudonyms(Keys(seed)).to("acme")(b"N1", 100.0) for seed in (b"s", b"s", b"t")]
    assert made[0] == made[1] != made[2]


def test_policies_consumers_and_long_ids_that_come_and_go_leave_nothing_behind():
    pseudonyms = Pseudonyms(Keys())
    first = pseudonyms.to("")(b"N1", 1.0)
    view = pseudonyms.to("").__self__
    for length in range(1, 1000):
        view.pseudonymise(bytes(1 << 20) if length == 500 else b"N1", float(length))
        view.pseudonymise(b"N1", 1.0, str(length))
    assert len(view._epochs) < 100
    assert all(len(value) < 1000 for epoch in view._epochs.values() for value in epoch.pseudonyms)
    for number in range(5000):
        pseudonyms.to(str(number))
    assert len(pseudonyms._consumers) < 2000
    assert pseudonyms.to("")(b"N1", 1.0) == first
