"""Checks of the charge log: verification and signed checkpoints."""
