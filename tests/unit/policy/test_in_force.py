"""Whether any rule is in force, in processes of their own: this one has imported many."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
# An annotated file, a file that only imports annotations, and one that knows nothing of them.
MODULES = """
import sys, types
from google.protobuf import descriptor_pb2, descriptor_pool
from dpmesh.policy import Policy
from dpmesh.policy.loaded_types import InForce
from dpmesh.v1 import policy_pb2, privacy_pb2

def added(name, annotated, imports):
    file = descriptor_pb2.FileDescriptorProto(name=f"{name}.proto", package=name, syntax="proto3")
    if imports:
        file.dependency.append("dpmesh/v1/privacy.proto")
    field = file.message_type.add(name="M").field.add(name="f", number=1, type=9, label=1)
    if annotated:
        field.options.Extensions[privacy_pb2.field].suppress.SetInParent()
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
    return descriptor_pool.Default().FindFileByName(file.name)

def imported(name, annotated=False, imports=True):
    module = sys.modules[f"{name}_pb2"] = types.ModuleType(f"{name}_pb2")
    module.DESCRIPTOR = added(name, annotated, imports)
"""


def run(body):
    done = subprocess.run(
        [sys.executable, "-c", MODULES + body],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=ROOT,
    )
    return json.loads(done.stdout.replace("True", "true").replace("False", "false"))


@pytest.fixture(scope="module")
def found():
    """One process, because starting one takes a third of a second."""
    return run(
        """
found = []
in_force = InForce(Policy())
found.append(in_force())                       # nothing but dpmesh's own
imported("plain", imports=False)
found.append(in_force())
imported("imports")
found.append(in_force())                       # it could have annotations, and has none
half = sys.modules["half_pb2"] = types.ModuleType("half_pb2")
found.append(in_force())                       # another thread is importing it
half.DESCRIPTOR = added("half", True, True)
found.append(in_force())                       # the number of modules is the same
del sys.modules["half_pb2"]
found.append(in_force())                       # for good
overlay = policy_pb2.Policy()
overlay.fields["plain.M.f"].suppress.SetInParent()
found.append(InForce(Policy(overlay))())
overlay = policy_pb2.Policy()
overlay.messages["plain.M"].epsilon = 1
found.append(InForce(Policy(overlay))())
found.append(InForce(Policy())())              # only modules count, and half_pb2 is gone
bad = sys.modules["bad_pb2"] = types.ModuleType("bad_pb2")
file = descriptor_pb2.FileDescriptorProto(name="bad.proto", package="bad", syntax="proto3")
file.dependency.append("dpmesh/v1/privacy.proto")
field = file.message_type.add(name="M").field.add(name="f", number=1, type=9, label=1)
field.options.Extensions[privacy_pb2.field].numeric.epsilon = 1
descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
bad.DESCRIPTOR = descriptor_pool.Default().FindFileByName("bad.proto")
found.append(InForce(Policy())())              # a bad annotation is a rule, too
print(found)
"""
    )


def test_rules_are_found_where_there_are_some(found):
    assert found[:3] == [False] * 3
    assert found[6:8] == [True] * 2
    assert found[8:] == [False, True]


def test_a_module_that_is_being_imported_is_looked_at_again(found):
    assert found[3:6] == [False, True, True]
