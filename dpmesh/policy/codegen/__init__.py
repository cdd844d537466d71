"""Python text generated from a Plan: the code that protects one message."""
