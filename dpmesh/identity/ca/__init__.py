"""The embedded certificate authority and its issuer."""
