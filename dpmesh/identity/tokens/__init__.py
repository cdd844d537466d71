"""Anonymous tokens: blind signatures, their wire format, the wallet and the verifier."""
