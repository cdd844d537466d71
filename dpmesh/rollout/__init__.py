"""How a policy gets from those who write it to those that it binds: order, sources, and what was taken last."""
