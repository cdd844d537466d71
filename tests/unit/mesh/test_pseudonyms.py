"""Pseudonyms: equal within an epoch, others in the next one, and never many in memory."""

from types import SimpleNamespace

from dpmesh.mesh.pseudonyms import Pseudonyms

LEDGER = SimpleNamespace(secret=b"s" * 32)


def test_a_unit_has_one_pseudonym_for_each_epoch_and_length():
    now = [1000.0]
    of = Pseudonyms(LEDGER, lambda: now[0]).of
    first, other = of(b"N1", 100.0), of(b"N1", 200.0)
    assert (of(b"N1", 100.0), of(b"N1", 200.0)) == (first, other)
    assert len({first, other, of(b"N2", 100.0)}) == 3
    now[0] = 1100.0
    assert of(b"N1", 100.0) != first
    assert of(b"N1", 200.0) == other


def test_policies_that_come_and_go_leave_no_epochs_behind():
    pseudonyms = Pseudonyms(LEDGER, lambda: 1000.0)
    first = pseudonyms.of(b"N1", 1.0)
    for length in range(1, 1000):
        pseudonyms.of(b"N1", float(length))
    assert len(pseudonyms._epochs) < 100
    assert pseudonyms.of(b"N1", 1.0) == first
