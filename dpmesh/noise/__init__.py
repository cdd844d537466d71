"""Exact noise on integers: samplers in blocks, pools, and one mechanism per kind of field.

Public: `dpmesh.noise.numeric`, `dpmesh.noise.numeric_choice` and `dpmesh.noise.categorical`. Nothing here does I/O
or knows protobuf.
"""
