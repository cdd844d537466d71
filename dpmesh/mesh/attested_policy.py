"""Attested policies: what a request's metadata say of the policy under which its sender protected it.

The metadata key `dpmesh-policy` has one of these values:

    | value                       | from senders whose policy                           |
    |-----------------------------|-----------------------------------------------------|
    | protected                   | has no `require_policy` for the method              |
    | 0123456789abcdef            | has one: the digest of the method's requests        |
    | 0123456789abcdef;epoch=5    | has one with a `min_epoch`: the digest, the epoch   |

What few devices say links them, so senders say no more than their own policy asks for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from dpmesh.policy.required_policy import RequiredPolicy

POLICY_KEY: Final = "dpmesh-policy"
_MARK = "protected"
# An epoch is a 64-bit number.
_NAMED = re.compile(r"([0-9a-f]{16})(?:;epoch=([0-9]{1,20}))?")


class AttestedPolicy(NamedTuple):
    """A policy that a sender named.

    Attributes:
        digest: Of all that decides the law of the method's requests: 16 hex digits, as `dpmesh plan` prints them.
        epoch: The policy's epoch; None if the sender did not say it.
    """

    digest: str
    epoch: int | None


def attestation(required: RequiredPolicy | None, epoch: int) -> str:
    """What a sender says of its policy.

    Args:
        required: What the sender's own policy says that the receiver asks for.
        epoch: Of the sender's policy.
    """
    if required is None:
        return _MARK
    return f"{required.digest};epoch={epoch}" if required.min_epoch else required.digest


def attested_policy(metadata: Iterable[tuple[str, Any]]) -> AttestedPolicy | None:
    """The policy that a request's metadata name; None if they name none, or more than one."""
    values = [value for key, value in metadata if key == POLICY_KEY]
    found = _NAMED.fullmatch(values[0]) if len(values) == 1 and isinstance(values[0], str) else None
    if found is None:
        return None
    digest, epoch = found.groups()
    return AttestedPolicy(digest, None if epoch is None else int(epoch))
