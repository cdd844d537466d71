"""FlowTable: the flows of all methods that a transport has seen, under the policy that the mesh has now."""

from __future__ import annotations

import logging
from fnmatch import fnmatchcase

from google.protobuf.descriptor import MethodDescriptor

from dpmesh import method_name
from dpmesh.bounded import BoundedTable
from dpmesh.errors import ConfigError
from dpmesh.mesh.flows import Flow
from dpmesh.mesh.mesh import Mesh
from dpmesh.mesh.request_metadata import DroppedKeys
from dpmesh.mesh.snapshot import PolicySnapshot

log = logging.getLogger("dpmesh.grpc")  # Applications may filter by this name.

# Where a generic handler serves any method, peers choose the names: no table of them may grow without end.
METHODS_KEPT = 4096


class MethodFlows:
    """Both flows of a method, under one policy.

    Attributes:
        mesh: Which mesh releases.
        dropped_keys: Logs the metadata keys that do not leave.
        snapshot: The policy under which they decide.
        name: "/package.Service/Method".
        request: What clients send.
        response: What servers send.
        requires_attestation: Servers refuse requests whose sender does not say that it protects them.
        required_policy: What servers ask of the sender's policy; None if any will do.
    """

    def __init__(
        self, table: FlowTable, snapshot: PolicySnapshot, name: str, declared: MethodDescriptor | None
    ) -> None:
        sent, answered = (None, None) if declared is None else (declared.input_type, declared.output_type)
        self.mesh = table.mesh
        self.dropped_keys = table.dropped_keys
        self.snapshot = snapshot
        self.name = name
        self.request = Flow(table, snapshot, name, "request", sent, table.consumer)
        self.response = Flow(table, snapshot, name, "response", answered)
        self.requires_attestation = snapshot.requires(name)
        self.required_policy = snapshot.required_policy(name)


class FlowTable:
    """The flows of all methods that a transport has seen.

    What a loaded proto declares is decided once under each policy. All other methods are looked up at each RPC, because
    their protos may have been loaded since.

    Args:
        mesh: Which mesh releases.
        consumer: Who receives requests, for quotas and pseudonyms.

    Raises:
        ConfigError: `mesh` is no mesh, or `consumer` is no text, or none that UTF-8 can write.
    """

    def __init__(self, mesh: Mesh, consumer: str = "") -> None:
        if not isinstance(mesh, Mesh):
            raise ConfigError(
                f"mesh: a {type(mesh).__name__} is no mesh; allowed: what dpmesh.open(...) returns"
            )
        if not isinstance(consumer, str):
            raise ConfigError(f"consumer: a {type(consumer).__name__} is no name; allowed: text")
        try:
            consumer.encode()
        except UnicodeEncodeError:
            raise ConfigError(
                "consumer: a name that UTF-8 can't write; allowed: text without surrogates"
            ) from None
        self.mesh = mesh
        self.consumer = consumer
        self.dropped_keys = DroppedKeys(mesh)
        # By the method's name as the transport gives it.
        self._declared: BoundedTable[str | bytes, MethodFlows] = BoundedTable(METHODS_KEPT)
        self._undeclared: BoundedTable[str | bytes, MethodFlows] = BoundedTable(METHODS_KEPT)
        self._last_snapshot = mesh.snapshot
        self._untyped_logged: BoundedTable[str, bool] = BoundedTable(METHODS_KEPT)

    def __getitem__(self, name: str | bytes) -> MethodFlows:
        """The flows of a method under the policy that the mesh has now."""
        snapshot = self.mesh.snapshot
        try:
            method = self._declared[name]
        except KeyError:
            pass
        else:
            if method.snapshot is snapshot:
                return method
        return self._find(name, snapshot)

    def _find(self, key: str | bytes, snapshot: PolicySnapshot) -> MethodFlows:
        if snapshot is not self._last_snapshot:
            self._last_snapshot = snapshot
            self._declared.clear()  # So that no old policy is kept in memory.
            self._undeclared.clear()
        name = key.decode() if isinstance(key, bytes) else key
        declared = method_name.find(name)
        kept = self._undeclared if declared is None else self._declared
        method = kept.get(key)
        # Another thread may have added one under another policy.
        if method is None or method.snapshot is not snapshot:
            method = kept[key] = MethodFlows(self, snapshot, name, declared)
        return method

    def lets_untyped_pass(self, method: str) -> bool:
        """Whether an object without a protobuf type may leave on a method that no loaded proto declares.

        Such an object may carry a protected type nevertheless: objects of proto-plus and betterproto do, and so do
        bytes that the application has serialized itself. The first one on each method is logged.
        """
        passes = any(fnmatchcase(method, glob) for glob in self.mesh.grpc.pass_unjudged)
        if method not in self._untyped_logged:
            self._untyped_logged[method] = passes
            if passes:
                text = "%s: objects that are no protobuf messages leave unprotected ([grpc] pass_unjudged)"
            elif self.mesh.observing:
                text = "observe mode: %s sends objects that are no protobuf messages, which would be refused"
            else:
                text = "%s: objects that are no protobuf messages are refused; [grpc] pass_unjudged lets them pass"
            log.warning(text, method)
        return passes
