"""InForce: whether any rule is in force. While none is, nothing is protected, and dpmesh does not interfere."""

from __future__ import annotations

import sys

from google.protobuf.descriptor import Descriptor

from dpmesh.errors import DpmeshError
from dpmesh.policy import loaded_types
from dpmesh.policy.policy import Policy

# Generated code keeps its file's descriptor under this name. A module that has none yet is still being imported.
_DESCRIPTOR = "DESCRIPTOR"


class InForce:
    """Looks for rules: an overlay, or an annotation of a type whose module is imported.

    The answer is kept: "yes" for good, "no" until more modules are imported.

    Args:
        policy: The rules.
    """

    def __init__(self, policy: Policy) -> None:
        overlays = policy.rules.overlay
        self._policy = policy
        self._in_force = any((overlays.fields, overlays.messages, overlays.oneofs, overlays.methods))
        # How many modules were imported when no rule was found.
        self._modules = -1

    def __call__(self) -> bool:
        """Whether any rule is in force."""
        if not self._in_force and len(sys.modules) != self._modules:
            self._look()
        return self._in_force

    def _look(self) -> None:
        modules = len(sys.modules)
        # Another thread may be in the middle of an import: the number of modules then changes no more.
        importing = any(
            name.endswith("_pb2") and _DESCRIPTOR not in getattr(module, "__dict__", {})
            for name, module in list(sys.modules.items())
        )
        self._in_force = any(self._rules(message) for message in loaded_types.message_types(self._policy))
        self._modules = -1 if importing else modules

    def _rules(self, message: Descriptor) -> bool:
        try:
            plan = self._policy.plan(message)
        except DpmeshError:
            return True
        # An open plan says only that messages of the type can hold others.
        return plan is not None and not plan.is_open
