"""What policies and budgets promise: pure calculations for the command line and other readers."""
