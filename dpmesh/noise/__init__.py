"""Exact noise on integers: samplers in blocks, pools, and one mechanism per kind of field.

Public: `dpmesh.noise.numeric` and `dpmesh.noise.categorical`. Nothing here does I/O or knows protobuf.
"""
