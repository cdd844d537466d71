"""Field kinds: what each kind of field rule decides, one file a kind, and the files that kinds share."""
