"""`require_policy`: which rules make sense, and what a receiver reads in them."""

import pytest

from dpmesh.errors import AnnotationError
from dpmesh.policy import Policy
from dpmesh.policy.required_policy import RequiredPolicy
from dpmesh.v1 import policy_pb2
from tests.support.protos import compiled

TYPES = compiled(
    """message Reading { bool b = 1 [(dpmesh.v1.field).categorical = {epsilon: 0.5}]; }
    message Plain { string text = 1; }
    message Open { google.protobuf.Any any = 1; }
    service Station { rpc Report(Reading) returns (Plain); rpc Tell(Plain) returns (Plain);
        rpc Send(Open) returns (Plain);
        rpc Named(Reading) returns (Plain) { option (dpmesh.v1.method) = {require_policy: {}}; } }"""
)
METHODS = TYPES.Plain.DESCRIPTOR.file.services_by_name["Station"].methods_by_name
NAME = f"/{TYPES.package}.Station/"
A, B, C = "0123456789abcdef", "fedcba9876543210", "0" * 16


def policy(method="Report", **fields):
    document = policy_pb2.Policy()
    document.methods[NAME + method].require_policy.SetInParent()
    for name, value in fields.items():
        rules = document.methods[NAME + method]
        if name == "require":
            rules.require = value
        elif name == "digests":
            rules.require_policy.digests.extend(value)
        else:
            rules.require_policy.min_epoch = value
    return Policy(document)


def test_what_a_receiver_asks_for():
    digest = Policy().plan(TYPES.Reading.DESCRIPTOR).version
    assert Policy().required_policy(METHODS["Report"]) is None
    assert Policy().required_policy(METHODS["Named"]) == RequiredPolicy(0, frozenset(), digest)
    asked = policy(min_epoch=3, digests=[A, B, A], require=True).required_policy(METHODS["Report"])
    assert asked == RequiredPolicy(3, frozenset({A, B}), digest)


def test_it_implies_require():
    assert not Policy().requires(METHODS["Report"])
    assert Policy().requires(METHODS["Named"])
    assert policy().requires(METHODS["Report"])


@pytest.mark.parametrize(
    ("method", "fields", "words"),
    [
        ("Report", {"require": False}, "require is false"),
        ("Report", {"digests": [A[:-1]]}, "16 hex digits"),
        ("Report", {"digests": [A.upper()]}, "16 hex digits"),
        ("Report", {"digests": [A, B, C]}, "lists 3 digests, and 2 versions may be live"),
        ("Tell", {}, "nothing of .*Plain itself is protected"),
        ("Send", {}, "nothing of .*Open itself is protected"),
    ],
)
def test_rules_that_make_no_sense_are_refused(method, fields, words):
    with pytest.raises(AnnotationError, match=words) as caught:
        policy(method, **fields).required_policy(METHODS[method])
    assert (caught.value.rule, caught.value.element) == ("require-policy", NAME + method)


def test_an_overlay_does_not_drop_it_by_saying_nothing():
    document = policy_pb2.Policy()
    document.methods[NAME + "Named"].require = True
    with pytest.raises(AnnotationError, match="leaves out its require_policy"):
        Policy(document).required_policy(METHODS["Named"])
