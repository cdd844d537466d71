"""Attestation: which requests are attested, what the application can't forge, and who is refused without it."""

import logging

import pytest

import dpmesh
from dpmesh.ledger import Ledger, MemoryStore
from dpmesh.mesh.attestation import (
    POLICY_KEY,
    is_attested,
    later_metadata,
    message_metadata,
    requirement,
    stream_metadata,
)
from dpmesh.mesh.flow_table import FlowTable
from dpmesh.mesh.mesh import Mesh
from dpmesh.mesh.refusals import Category
from dpmesh.policy import Policy
from dpmesh.v1 import policy_pb2
from tests.support.protos import compiled

TYPES = compiled(
    """message Reading { string id = 1 [(dpmesh.v1.field).unit = {}];
        bool b = 2 [(dpmesh.v1.field).categorical = {epsilon: 0.5}]; }
    message Plain { string text = 1; }
    service Station {
        rpc Named(Reading) returns (Plain) { option (dpmesh.v1.method).require_policy = {}; }
        rpc Dated(stream Reading) returns (Plain) {
            option (dpmesh.v1.method) = {require: true require_policy: {min_epoch: 3}}; }
        rpc Listed(Reading) returns (Plain) {
            option (dpmesh.v1.method).require_policy = {digests: ["0123456789abcdef", "fedcba9876543210"]}; }
        rpc Report(stream Reading) returns (Plain); rpc Echo(stream Plain) returns (Plain);
        rpc Strict(Reading) returns (Plain) { option (dpmesh.v1.method).require = true; } }"""
)
GIVEN = (("traceparent", "1"), ("x-request-id", "17"), (POLICY_KEY, "forged"), ("encoding", "gzip"))
ADDED = (("encoding", "identity"),)
MARK = (POLICY_KEY, "protected")
COMPRESSION = "grpc-internal-encoding-request"


def table(mode="enforce"):
    budget = {"name": "day", "key": "unit", "epsilon": 1.0, "accounting": "pure", "window": "24h"}
    return FlowTable(dpmesh.open({"mode": mode, "ledger": {"url": "memory:"}, "budget": [budget]}))


def flows(method, **options):
    return table(**options)[f"/{TYPES.package}.Station/{method}"]


def digest():
    return Policy().plan(TYPES.Reading.DESCRIPTOR).version


def test_a_protected_message_is_attested_without_a_word_on_its_policy():
    flow = flows("Report").request
    assert message_metadata(flow, "raw", "noisy", GIVEN, ADDED) == (GIVEN[0], MARK, *ADDED)
    assert message_metadata(flow, "raw", "noisy", None) == (MARK,)
    assert message_metadata(flow, "raw", "raw", GIVEN, ADDED) is GIVEN


def test_senders_say_of_their_policy_what_their_own_rules_ask_for_and_no_more():
    assert message_metadata(flows("Named").request, "raw", "noisy", None) == ((POLICY_KEY, digest()),)
    assert message_metadata(flows("Strict").request, "raw", "noisy", None) == (MARK,)
    assert stream_metadata(flows("Dated").request, None) == ((POLICY_KEY, f"{digest()};epoch=0"),)
    policy = policy_pb2.Policy(epoch=7)
    dated = FlowTable(Mesh(Policy(policy), Ledger(MemoryStore(), [])))[f"/{TYPES.package}.Station/Dated"]
    assert stream_metadata(dated.request, GIVEN) == (GIVEN[0], (POLICY_KEY, f"{digest()};epoch=7"))


def test_a_stream_is_attested_by_what_its_method_declares():
    flow = flows("Report").request
    assert stream_metadata(flow, GIVEN, ADDED) == (GIVEN[0], MARK, *ADDED)
    assert stream_metadata(flows("Echo").request, GIVEN, ADDED) is GIVEN
    assert stream_metadata(flows("Report", mode="observe").request, GIVEN, ADDED) is GIVEN


def test_what_is_added_later_is_looked_at_as_well():
    flow = flows("Report").request
    given = message_metadata(flow, "raw", "noisy", GIVEN, ((COMPRESSION, "identity"),))
    assert later_metadata(flow, given, streams=False) is given
    assert later_metadata(flow, (*given, ("baggage", "a=1")), streams=False) == given
    assert later_metadata(flow, GIVEN[:2], streams=False) == GIVEN[:2]  # The request was not protected.
    assert later_metadata(flow, GIVEN[:2], streams=True) == GIVEN[:1]
    assert later_metadata(flow, None, streams=True) is None


def test_a_stream_without_a_declared_type_is_not_attested_and_can_not_forge_it():
    flow = table()["/no.Such/Method"].request
    flow.protected = True  # as if any rule were in force
    assert stream_metadata(flow, GIVEN, ADDED) == (GIVEN[0], *ADDED)


@pytest.mark.parametrize(("metadata", "attested"), [((), False), (GIVEN[:1], False), (GIVEN, True)])
def test_a_receiver_looks_for_the_key(metadata, attested):
    assert is_attested(metadata) is attested


def refused(method, *values):
    refusal = requirement(flows(method)).refusal([(POLICY_KEY, value) for value in values])
    if refusal is None:
        return None
    assert refusal.category is Category.PRECONDITION
    assert refusal.details["method"] == f"/{TYPES.package}.Station/{method}"
    assert not any(f"'{value}" in str(refusal) for value in values if value)
    return refusal.reason


def test_only_methods_that_require_it_refuse_other_requests(caplog):
    refusal = requirement(flows("Strict")).refusal(iter(GIVEN[:2]))
    assert (refusal.category, refusal.reason) == (Category.PRECONDITION, "NOT_PROTECTED")
    assert refusal.details == {"method": f"/{TYPES.package}.Station/Strict"}
    assert "'dpmesh-policy' is missing" in refusal.text
    assert requirement(flows("Report")) is None
    for value in ("protected", digest(), f"{digest()};epoch=5", "anything"):
        assert refused("Strict", value) is None
    with caplog.at_level(logging.WARNING):
        assert requirement(flows("Strict", mode="observe")) is None
    assert "requires protected requests, and takes any" in caplog.text


# What senders before this version attest: a digest of overlays.
FORMER = "ab" * 32


@pytest.mark.parametrize(
    ("method", "values", "reason"),
    [
        *((method, (), "NOT_PROTECTED") for method in ("Named", "Dated", "Listed")),
        *(
            (method, values, "POLICY_NOT_NAMED")
            for method in ("Named", "Dated", "Listed")
            for values in (
                ("protected",), ("",), (FORMER,), ("0123456789ABCDEF",), ("0123456789abcde",), (b"0123456789abcdef",),
                ("0123456789abcdef;epoch=",), ("0123456789abcdef;epoch=-1",), ("0123456789abcdef;epoch=5;",),
                ("0123456789abcdef\n",), ("0123456789abcdef;epoch=" + "9" * 21,), ("0123456789abcdef;epoch=\u0665",),
                ("0123456789abcdef", "0123456789abcdef"),
            )
        ),
        ("Named", ("0123456789abcdef",), None),
        ("Named", ("0123456789abcdef;epoch=0",), None),
        ("Dated", ("0123456789abcdef",), "POLICY_NOT_NAMED"),
        ("Dated", ("0123456789abcdef;epoch=2",), "POLICY_TOO_OLD"),
        ("Dated", ("0123456789abcdef;epoch=3",), None),
        ("Dated", ("0123456789abcdef;epoch=18446744073709551615",), None),
        ("Listed", ("0123456789abcdef",), None),
        ("Listed", ("fedcba9876543210;epoch=1",), None),
        ("Listed", ("0123456789abcdee",), "POLICY_NOT_TAKEN"),
    ],
)  # fmt: skip
def test_a_receiver_takes_no_older_and_no_other_policy_than_it_asks_for(method, values, reason):
    assert refused(method, *values) == reason


def test_a_refusal_says_what_the_sender_has_to_set():
    named, dated = requirement(flows("Named")), requirement(flows("Dated"))
    assert "set require_policy in their policy" in named.refusal([MARK]).text
    value = (POLICY_KEY, "0123456789abcdef")
    assert "set require_policy.min_epoch in their policy" in dated.refusal([value]).text
    assert "epoch 3 or later" in dated.refusal([(POLICY_KEY, f"{value[1]};epoch=2")]).text
    listed = requirement(flows("Listed")).refusal([(POLICY_KEY, "0" * 16)])
    assert listed.details["digests"] == "0123456789abcdef,fedcba9876543210"
