"""Untyped objects: whether an object without a protobuf type may leave on a method that no loaded proto declares."""

from __future__ import annotations

import logging
from fnmatch import fnmatchcase

from dpmesh.bounded import BoundedTable
from dpmesh.mesh.mesh import Mesh

log = logging.getLogger("dpmesh.grpc")  # Applications may filter by this name.

# Where a generic handler serves any method, peers choose the names: no table of them may grow without end.
METHODS_KEPT = 4096


class UntypedObjects:
    """Decides about objects that have no protobuf type, so that no rule can be found for them.

    Such an object may carry a protected type all the same: objects of proto-plus and betterproto do, and so do bytes
    that the application has serialized itself.

    Args:
        mesh: Whose configuration lists the methods on which they pass.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._observing = mesh.observing
        self._globs = mesh.grpc.pass_unjudged
        self._logged: BoundedTable[str, bool] = BoundedTable(METHODS_KEPT)

    def may_leave(self, method: str) -> bool:
        """Whether such an object may leave on a method; the first one on each method is logged.

        Args:
            method: "/package.Service/Method".
        """
        passes = any(fnmatchcase(method, glob) for glob in self._globs)
        if method not in self._logged:
            self._logged[method] = passes
            self._log(method, passes)
        return passes

    def _log(self, method: str, passes: bool) -> None:
        if passes:
            text = "%s: objects that are no protobuf messages leave unprotected ([grpc] pass_unjudged)"
        elif self._observing:
            text = "observe mode: %s sends objects that are no protobuf messages, which would be refused"
        else:
            text = (
                "%s: objects that are no protobuf messages are refused; [grpc] pass_unjudged lets them pass"
            )
        log.warning(text, method)
