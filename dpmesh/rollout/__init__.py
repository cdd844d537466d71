"""How a policy gets from those who write it to those that it binds: order, sources, and what was taken last."""

from dpmesh.rollout.opening import open_source

__all__ = ["open_source"]
