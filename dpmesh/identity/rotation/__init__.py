"""The rotation of one identity: its schedule, its fetching, the health of its source, and who waits for it."""
