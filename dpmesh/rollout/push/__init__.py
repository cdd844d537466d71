"""The push service of policies without its transport: what devices report, where it is counted, when to halt."""
