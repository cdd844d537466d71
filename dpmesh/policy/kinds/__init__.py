"""Field kinds: what each kind of field rule decides, one file a kind, found by its name in the schema."""
