"""Field kinds: what a rule says about one field, checked, and how its value becomes a protected one."""
