"""Rings: which devices are in them, and what ring.json may say."""

import msgspec
import pytest

from dpmesh.rollout.rings import Ring


@pytest.mark.parametrize(
    "content",
    [
        b"", b"x", b"[]", b"{}", b'{"epoch": 5}', b'{"epoch": -1, "share": 0.5}', b'{"epoch": "5", "share": 0.5}',
        b'{"epoch": 5, "share": 1.5}', b'{"epoch": 5, "share": -0.5}', b'{"epoch": 5, "share": NaN}',
    ],
)  # fmt: skip
def test_what_is_no_ring_is_refused(content):
    with pytest.raises(ValueError, match=r"share"):
        Ring.parse(content)


def test_what_officers_write_is_what_devices_read():
    assert Ring.parse(msgspec.json.encode(Ring(5, 0.05))) == Ring(5, 0.05)


def test_a_share_of_0_has_nobody_and_one_of_1_everybody_and_a_larger_ring_has_the_smaller_one():
    secrets = [bytes([number]) * 32 for number in range(100)]
    has = {share: {s for s in secrets if Ring(5, share).has(s)} for share in (0.0, 0.25, 0.5, 1.0)}
    assert not has[0.0]
    assert has[0.0] < has[0.25] < has[0.5] < has[1.0] == set(secrets)
