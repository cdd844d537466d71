"""The rotation of one identity: when it is renewed, and who waits for it."""
