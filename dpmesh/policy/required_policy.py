"""Required policies: what a receiver asks of the policy under which a method's requests were protected."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from google.protobuf.descriptor import MethodDescriptor

from dpmesh import method_name
from dpmesh.errors import AnnotationError
from dpmesh.policy.plan import Plan
from dpmesh.v1 import privacy_pb2

# Of one method: the policy that is rolled out, and the one before it.
LIVE_VERSIONS: Final = 2
_DIGEST = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class RequiredPolicy:
    """What a method's `require_policy` says, and what a sender under this policy answers.

    Attributes:
        min_epoch: The smallest epoch that is taken; 0 if epochs don't matter, and senders don't say theirs.
        digests: The digests that are taken; empty if any is.
        digest: The digest of the method's requests under this policy.
    """

    min_epoch: int
    digests: frozenset[str]
    digest: str


def is_digest(text: str) -> bool:
    """Whether a text has the form of a plan's digest: 16 hex digits."""
    return _DIGEST.fullmatch(text) is not None


def checked(method: MethodDescriptor, rules: privacy_pb2.MethodRules, plan: Plan | None) -> RequiredPolicy:
    """What a method's rules ask for.

    Args:
        method: The method.
        rules: Its rules, with a `require_policy`.
        plan: That of its requests.

    Raises:
        AnnotationError: The rules make no sense.
    """
    name, required = method_name.name_of(method), rules.require_policy

    def bad(text: str, fix: str) -> AnnotationError:
        return AnnotationError("require-policy", name, text, fix)

    if rules.HasField("require") and not rules.require:
        raise bad("require_policy is set, and require is false", "remove one of them")
    if plan is None or plan.is_open:
        text = f"require_policy is set, but nothing of {method.input_type.full_name} itself is protected"
        raise bad(text, "protect it, or remove require_policy")
    if not all(map(is_digest, required.digests)):
        raise bad("one of the digests is none", "16 hex digits, as `dpmesh plan` prints them")
    if len(set(required.digests)) > LIVE_VERSIONS:
        text = (
            f"lists {len(set(required.digests))} digests, and {LIVE_VERSIONS} versions may be live at a time"
        )
        raise bad(text, "wait until no device has the oldest of them, and remove it")
    return RequiredPolicy(required.min_epoch, frozenset(required.digests), plan.version)
