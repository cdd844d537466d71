"""Anonymous tokens: blind signatures, the wire format, the issuer's keys, the wallet, the verifier and tickets."""
