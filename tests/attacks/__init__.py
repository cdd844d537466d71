"""Attacks on what the product sends: `make attacks` prints what each of them gains, and docs/attacks.md keeps one such table."""
