"""Reads YAML (and so JSON) of a size that memory and the stack can take, whatever a file says."""

from __future__ import annotations

from typing import Any

import yaml

from dpmesh.policy.descriptors import DEEPEST

MOST_NODES = 1_000_000
"""Values of a document, each alias counted as all that it stands for."""


class BoundsError(Exception):
    """The document is nested too deeply, or too large once its aliases are written out."""


class BoundedLoader(yaml.SafeLoader):
    """A SafeLoader for which a few lines of aliases can't stand for billions of values."""

    def get_single_node(self) -> Any:
        """See yaml.

        Raises:
            BoundsError: The document is too deep or too large.
        """
        try:
            root = super().get_single_node()
        except RecursionError:
            raise BoundsError(f"nested more than {DEEPEST} levels deep") from None
        _check(root)
        return root


def _check(root: Any) -> None:
    """Walks through all that a document stands for, and no further than the bounds."""
    seen = 0
    waiting = [] if root is None else [(root, 1)]
    while waiting:
        node, depth = waiting.pop()
        seen += 1
        if depth > DEEPEST:
            raise BoundsError(f"nested more than {DEEPEST} levels deep")
        if seen > MOST_NODES:
            raise BoundsError(f"has more than {MOST_NODES} values")
        if isinstance(node, yaml.MappingNode):
            waiting += [(part, depth + 1) for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += [(part, depth + 1) for part in node.value]
