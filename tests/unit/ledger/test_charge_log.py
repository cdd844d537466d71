"""Chains: whatever is changed, dropped, swapped or added shows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpmesh.errors import LedgerError
from dpmesh.ledger.charge_log import (
    CHAIN_BYTES,
    ChainWriter,
    Entry,
    EntryKind,
    Head,
    Posting,
    begin,
    decode,
    encode,
    follow,
    link,
    wrong_end,
)

NAME = bytes(range(CHAIN_BYTES))
LINES = st.builds(
    Posting,
    st.integers(0, 2**32 - 1),
    st.binary(min_size=16, max_size=16),
    st.integers(0, 2**64 - 1),
    st.integers(-(2**63), 2**63 - 1),
)
ENTRIES = st.builds(
    Entry,
    st.sampled_from(EntryKind),
    st.integers(0, 2**64 - 1),
    st.lists(LINES, max_size=4).map(lambda lines: tuple(sorted(lines))),
    st.text(max_size=20),
)
Stored = list[tuple[int, bytes, bytes]]


def chain_of(bodies: list[bytes]) -> tuple[Stored, Head]:
    """A chain as a ledger holds it."""
    head, entries = begin(NAME), []
    for body in bodies:
        head = link(head, body)
        entries.append((head.seq, body, head.hash))
    return entries, head


CHAINS = st.lists(ENTRIES, min_size=1, max_size=5).map(
    lambda entries: chain_of([encode(e.kind, e.at, e.postings, e.note) for e in entries])
)


@given(ENTRIES)
def test_what_is_encoded_is_decoded(entry):
    body = encode(entry.kind, entry.at, entry.postings, entry.note)
    assert decode(body) == entry
    assert encode(entry.kind, entry.at, reversed(entry.postings), entry.note) == body


@given(st.binary(max_size=80))
def test_other_bytes_are_canonical_or_refused(body):
    try:
        entry = decode(body)
    except LedgerError:
        return
    assert encode(entry.kind, entry.at, entry.postings, entry.note) == body


@pytest.mark.parametrize("order", ["backwards", "cut"])
def test_lines_out_of_order_and_lines_cut_short_are_refused(order):
    body = encode(EntryKind.DEBIT, 7, [Posting(1, b"a" * 16, 0, 1), Posting(1, b"b" * 16, 0, 1)])
    size = (len(body) - 13) // 2
    bad = body[:13] + body[13 + size :] + body[13 : 13 + size] if order == "backwards" else body[:-1]
    with pytest.raises(LedgerError, match="charge log"):
        decode(bad)


def break_in(head, entries, end):
    """What is wrong with a chain, as verification finds it; None if nothing is."""
    try:
        for entry in entries:
            head, _ = follow(head, *entry)
    except LedgerError as error:
        return str(error)
    return wrong_end(head, end)


@given(CHAINS)
def test_a_whole_chain_has_no_break_wherever_it_is_cut(chain):
    entries, end = chain
    assert break_in(begin(NAME), entries, end) is None
    for number in range(1, len(entries)):
        middle = Head(number, entries[number - 1][2])
        assert break_in(begin(NAME), entries[:number], middle) is None
        assert break_in(middle, entries[number:], end) is None


@given(CHAINS, st.data())
def test_one_byte_that_is_changed_shows(chain, data):
    entries, end = chain
    which = data.draw(st.integers(0, len(entries) - 1))
    seq, body, hash_ = entries[which]
    in_hash = data.draw(st.booleans())
    changed = bytearray(hash_ if in_hash else body)
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    entries[which] = (seq, body, bytes(changed)) if in_hash else (seq, bytes(changed), hash_)
    assert break_in(begin(NAME), entries, end) == f"entry {seq} was altered, or the one before it"


@given(CHAINS, st.data())
def test_an_entry_that_is_dropped_shows(chain, data):
    entries, end = chain
    seq, _, _ = entries.pop(data.draw(st.integers(0, len(entries) - 1)))
    assert break_in(begin(NAME), entries, end) == f"entry {seq} is missing"
    renumbered = [(number, body, hash_) for number, (_, body, hash_) in enumerate(entries, 1)]
    assert break_in(begin(NAME), renumbered, end) is not None


@given(CHAINS, st.data())
def test_entries_that_are_swapped_show(chain, data):
    entries, end = chain
    if len(entries) < 2:
        return
    first = data.draw(st.integers(0, len(entries) - 2))
    second = data.draw(st.integers(first + 1, len(entries) - 1))
    for swap_hashes in (True, False):
        swapped = list(entries)
        for here, there in ((first, second), (second, first)):
            seq, _, hash_ = entries[here]
            swapped[here] = (seq, entries[there][1], entries[there][2] if swap_hashes else hash_)
        same = entries[first][1] == entries[second][1]
        assert (break_in(begin(NAME), swapped, end) is None) == (same and not swap_hashes)


@given(CHAINS, ENTRIES)
def test_an_entry_behind_the_end_shows(chain, entry):
    entries, end = chain
    more = link(end, encode(entry.kind, entry.at, entry.postings))
    longer = [*entries, (more.seq, encode(entry.kind, entry.at, entry.postings), more.hash)]
    assert break_in(begin(NAME), longer, end) is not None
    assert break_in(begin(NAME), longer, more) is None


@given(CHAINS)
def test_another_beginning_or_end_shows(chain):
    entries, end = chain
    assert break_in(begin(NAME[::-1]), entries, end) is not None
    assert break_in(begin(NAME), entries, Head(end.seq, bytes(32))) is not None
    assert break_in(begin(NAME), entries, Head(end.seq + 1, end.hash)) == f"entry {end.seq + 1} is missing"


def test_the_hashes_are_fixed():
    body = encode(EntryKind.GRANT, 1_700_000_000, [Posting(1, b"a" * 16, 0, 5)], "because")
    assert (
        link(begin(NAME), body).hash.hex()
        == "3112211da083eaf39eb796531f331e6dd381f903b1486b6fc04cc972bbed089b"
    )


class TestOwnChain:
    """What a holder finds must be what it left, as far as it can know that."""

    def test_nothing_is_there_at_first(self):
        for found in (None, "begin"):
            own = ChainWriter()
            head = begin(own.name)
            assert own.check(None if found is None else head, "it") == head

    def test_what_was_acknowledged_must_be_there(self):
        own = ChainWriter()
        first = link(begin(own.name), b"1")
        own.attempt(first)
        own.acknowledge()
        assert own.check(first, "it") == own.latest() == first
        for other in (None, begin(own.name), link(first, b"2"), Head(1, bytes(32))):
            with pytest.raises(LedgerError, match="it has lost charges that it had committed"):
                own.check(other, "it")

    def test_what_failed_may_be_there(self):
        own = ChainWriter()
        first = link(begin(own.name), b"1")
        own.attempt(first)
        own.acknowledge()
        attempts = [link(first, b"2"), link(first, b"two")]
        for attempt in attempts:
            own.attempt(attempt)
        for found in (first, *attempts):
            assert own.check(found, "it") == found
        last = link(attempts[0], b"3")
        own.attempt(last)
        own.acknowledge()
        assert own.check(last, "it") == last
        for found in (first, *attempts):
            with pytest.raises(LedgerError, match="lost"):
                own.check(found, "it")

    def test_the_same_bytes_once_more_that_were_not_written_may_be_there_from_the_first_time(self):
        own = ChainWriter()
        first, second = (link(begin(own.name), body) for body in (b"1", b"2"))
        own.attempt(first)  # and nobody knows what became of it
        own.attempt(second)
        own.withdraw()
        own.attempt(first)
        own.withdraw()
        assert own.doubtful
        assert own.check(first, "it") == first
        with pytest.raises(LedgerError, match="lost"):
            own.check(second, "it")

    def test_what_is_settled_leaves_no_doubt(self):
        own = ChainWriter()
        attempts = [link(begin(own.name), bytes([i])) for i in range(9)]
        for attempt in attempts:
            own.attempt(attempt)
        assert own.settle(attempts[4], "it") == own.latest() == attempts[4]
        assert not own.doubtful
        for found in (None, begin(own.name), *attempts[:4], *attempts[5:]):
            with pytest.raises(LedgerError, match="lost"):
                own.settle(found, "it")

    def test_nothing_that_is_settled_is_the_beginning(self):
        own = ChainWriter()
        own.attempt(link(begin(own.name), b"1"))
        for found in (None, begin(own.name)):
            assert own.settle(found, "it") == own.latest() == begin(own.name)
            assert not own.doubtful

    def test_times_never_go_back(self):
        own = ChainWriter()
        assert [own.at(now) for now in (-1.0, 5.5, 3.0, 5.9, 6.0)] == [0, 5, 5, 5, 6]
