"""Message classes of other descriptor pools, which may have lost their annotations, are judged by those that dpmesh knows."""

import pytest
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool
from google.protobuf.message_factory import GetMessageClass
from google.rpc import status_pb2  # noqa: F401 - the pool has to know it

import dpmesh
from dpmesh.policy import Policy
from dpmesh.v1 import policy_pb2
from tests.support.protos import compiled
from tests.unit.mesh.test_packed_messages import CAT, GONE, MARK, UNIT, packed, raw, released, settings

BODY = f"""message Report {{ string id = 1 {UNIT}; string secret = 2 {GONE}; bool b = 3 [{CAT} = {{epsilon: 0.5}}];
        google.protobuf.Any more = 4; }}
    message Holder {{ Report report = 1; string note = 2; }}
    message Strict {{ option (dpmesh.v1.message) = {{unannotated: SUPPRESS}}; string secret = 1; }}
    message Choice {{ oneof choice {{ option (dpmesh.v1.oneof) = {{epsilon: 0.25}};
        string secret = 1 {GONE}; string other = 2 {GONE}; }} }}
    message Plain {{ string s = 1; }}"""
TYPES = compiled(BODY)


def stripped(like=None, **renamed):
    """The same types in another pool, without annotations.

    Args:
        like: The types.
        renamed: New names of fields.
    """
    file = descriptor_pb2.FileDescriptorProto()
    (like or TYPES).Plain.DESCRIPTOR.file.CopyToProto(file)
    del file.dependency[:]
    file.dependency.append("google/protobuf/any.proto")
    for message in file.message_type:
        message.ClearField("options")
        for part in (*message.field, *message.oneof_decl):
            part.ClearField("options")
            part.name = renamed.get(part.name, part.name)
        for field in message.field:
            field.ClearField("json_name")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(any_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    names = pool.FindFileByName(file.name).message_types_by_name
    return {name: GetMessageClass(found) for name, found in names.items()}


BARE = stripped()


CASES = {
    "fields": (lambda: BARE["Report"](id="N1", secret=MARK, b=True), {(0, b"N1"): 0.5}),
    "nested": (
        lambda: BARE["Holder"](report={"id": "N1", "secret": MARK}, note="x"),
        {(0, b"N1"): 0.5},
    ),
    "a message's rule": (lambda: BARE["Strict"](secret=MARK), {}),
    "a choice": (lambda: BARE["Choice"](secret=MARK), {(1, b""): 0.25}),
    "renamed fields": (
        lambda: stripped(secret="new_name")["Report"](id="N1", new_name=MARK),
        {(0, b"N1"): 0.5},
    ),
    "what an Any packs": (
        lambda: BARE["Report"](id="N1", more={"type_url": "x/" + NAME, "value": PACKED}),
        {(0, b"N1"): 1.0, (0, b"N2"): 0.5},
    ),
}


@pytest.mark.parametrize("case", CASES)
async def test_a_type_of_a_pool_without_annotations_has_those_of_the_default_pool(case):
    make, charged = CASES[case]
    receipt, charges = await released(make())
    assert (receipt.decision, charges) == ("released", charged)
    assert not raw(receipt.message)


NAME = TYPES.Report.DESCRIPTOR.full_name
PACKED = TYPES.Report(id="N2", secret=MARK, b=True).SerializeToString()


async def test_a_type_of_another_pool_without_rules_anywhere_passes():
    receipt, charges = await released(BARE["Plain"](s=MARK))
    assert (receipt.decision, receipt.message.s, charges) == ("unprotected", MARK, {})


def test_an_overlay_wins_over_the_default_pools_annotation():
    overlay = policy_pb2.Policy()
    overlay.fields[f"{TYPES.package}.Report.b"].suppress.SetInParent()
    plan = Policy(overlay).plan(BARE["Report"].DESCRIPTOR)
    assert {entry.name.rpartition(".")[2]: str(entry.kind) for entry in plan.fields}["b"] == "suppress"


async def test_a_module_that_is_imported_later_brings_its_rules_to_classes_of_other_pools():
    late = compiled(BODY + "message Late {}")
    file = descriptor_pb2.FileDescriptorProto()
    late.Plain.DESCRIPTOR.file.CopyToProto(file)
    new = file.SerializeToString().replace(late.package.encode(), b"z" * len(late.package))
    file = descriptor_pb2.FileDescriptorProto.FromString(new)
    bare = descriptor_pb2.FileDescriptorProto.FromString(new)
    for message in bare.message_type:
        for field in message.field:
            field.ClearField("options")
    pool = descriptor_pool.DescriptorPool()
    for name in ("google/protobuf/descriptor.proto", "google/protobuf/duration.proto", *file.dependency):
        pool.AddSerializedFile(descriptor_pool.Default().FindFileByName(name).serialized_pb)
    pool.AddSerializedFile(bare.SerializeToString())
    Holder = GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.Holder"))
    message = Holder(report={"id": "N1", "secret": MARK})
    async with dpmesh.open(settings()) as mesh:
        assert mesh.snapshot.protection(Holder) is None
        assert (await mesh.release(message)).decision == "unprotected"
        descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
        assert mesh.snapshot.protection(Holder) is True
        receipt = await mesh.release(message)
        assert receipt.decision == "released"
        assert not raw(receipt.message)
        # The Any around it is of the default pool, and says so.
        assert not raw((await mesh.release(packed(message))).message)
