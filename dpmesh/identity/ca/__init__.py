"""The embedded certificate authority, and the issuer that enrols devices, renews certificates and signs tokens."""
