"""A fleet's flight reports over gRPC: the example that `dpmesh demo` runs.

fleet.proto is annotated, fleet.toml holds the budgets, service.py is what any team would write, and fly.py
puts dpmesh's three lines around it.
"""
