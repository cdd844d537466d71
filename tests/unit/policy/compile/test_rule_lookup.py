"""The digest of a message type: it is another one whenever the law of what leaves is, and stays equal otherwise."""

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool

from dpmesh.policy import Policy
from dpmesh.v1 import policy_pb2
from tests.support.protos import compiled

TYPES = compiled(
    """enum State { UNKNOWN = 0; IDLE = 1; }
    enum Colour { RED = 0; }
    message Place { double latitude = 1; double longitude = 2; }
    message M {
        string id = 1 [(dpmesh.v1.field).unit = {}];
        double a = 2 [(dpmesh.v1.field).numeric = {lower: 0 upper: 2 epsilon: 0.5}];
        State b = 3 [(dpmesh.v1.field).categorical = {epsilon: 0.5}];
        Colour c = 4 [(dpmesh.v1.field).public = {}];
        optional double d = 7 [(dpmesh.v1.field).numeric = {lower: 1 upper: 2 epsilon: 0.5}];
        oneof choice { option (dpmesh.v1.oneof) = {epsilon: 0.5};
            bool e = 5 [(dpmesh.v1.field).categorical = {epsilon: 0.5}];
            bool f = 6 [(dpmesh.v1.field).categorical = {epsilon: 0.5}]; }
        string g = 8;
    }"""
)
NAME = f"{TYPES.package}.M"


def file():
    """The file as a descriptor, which can be changed."""
    found = descriptor_pb2.FileDescriptorProto()
    TYPES.M.DESCRIPTOR.file.CopyToProto(found)
    return found


def digest(changed=None, overlays=None):
    pool = descriptor_pool.DescriptorPool()
    seen = set()

    def add(known):
        for each in known.dependencies:
            add(each)
        if known.name not in seen:
            seen.add(known.name)
            copy = descriptor_pb2.FileDescriptorProto()
            known.CopyToProto(copy)
            pool.Add(copy)

    for each in TYPES.M.DESCRIPTOR.file.dependencies:
        add(each)
    pool.Add(changed or file())
    return Policy(overlays).plan(pool.FindMessageTypeByName(NAME)).version


def fields(changed):
    return {field.name: field for field in changed.message_type[1].field}


def more_categories(changed):
    changed.enum_type[0].value.add(name="RUNNING", number=2)


def other_numbers(changed):
    changed.enum_type[0].value[1].number = 2


def other_type(changed):
    fields(changed)["a"].type = descriptor_pb2.FieldDescriptorProto.TYPE_INT32


def never_absent(changed):
    fields(changed)["d"].ClearField("proto3_optional")
    fields(changed)["d"].ClearField("oneof_index")
    del changed.message_type[1].oneof_decl[1]


def more_choices(changed):
    changed.message_type[1].field.add(name="h", number=9, type=8, label=1, oneof_index=0)
    new = changed.message_type[1].field[-1]
    new.options.CopyFrom(fields(changed)["f"].options)


@pytest.mark.parametrize(
    "change",
    [more_categories, other_numbers, other_type, never_absent, more_choices],
    ids=lambda f: f.__name__,
)
def test_a_schema_that_gives_an_equal_rule_another_law_has_another_digest(change):
    changed = file()
    change(changed)
    assert digest(changed) != digest()


def unprotected_field(changed):
    changed.message_type[1].field.add(name="i", number=10, type=9, label=1)


def more_public_colours(changed):
    changed.enum_type[1].value.add(name="BLUE", number=1)


@pytest.mark.parametrize("change", [unprotected_field, more_public_colours], ids=lambda f: f.__name__)
def test_what_leaves_as_it_is_does_not_change_the_digest(change):
    changed = file()
    change(changed)
    assert digest(changed) == digest() == Policy().plan(TYPES.M.DESCRIPTOR).version


def test_budgets_epochs_and_overlays_of_other_types_do_not_change_the_digest():
    policy = policy_pb2.Policy(
        epoch=4, mode=policy_pb2.ENFORCE, budgets=[policy_pb2.Budget(name="b", epsilon=1)]
    )
    policy.fields[f"{TYPES.package}.Place.latitude"].suppress.SetInParent()
    policy.methods["/a.S/M"].require = True
    assert digest(overlays=policy) == digest()


def test_an_overlay_changes_the_digest_and_one_that_says_what_the_annotation_says_does_not():
    policy = policy_pb2.Policy()
    rule = policy.fields[f"{NAME}.a"].numeric
    rule.lower, rule.upper, rule.epsilon = 0, 2, 0.5
    assert digest(overlays=policy) == digest()
    rule.epsilon = 0.25
    assert digest(overlays=policy) != digest()
