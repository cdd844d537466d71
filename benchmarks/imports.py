"""What `import dpmesh, dpmesh_grpc` adds to a service that has grpc.aio, numpy and cryptography already."""

from __future__ import annotations

import statistics
import subprocess
import sys

from benchmarks.table import Row

BASE = "import grpc.aio, numpy, cryptography.hazmat.primitives.ciphers"
PROBE = """
import sys, time
{base}
start = time.perf_counter()
import dpmesh, dpmesh_grpc
print(time.perf_counter() - start)
print([name for name in ("scipy", "pandas", "dp_accounting") if name in sys.modules])
"""


def rows() -> list[Row]:
    """The median of nine fresh interpreters, after one that fills the disk's cache."""
    seconds = []
    heavy = "[]"
    for _ in range(10):
        command = [sys.executable, "-c", PROBE.format(base=BASE)]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
        seconds.append(float(out[0]))
        heavy = out[1]
    if heavy != "[]":
        raise AssertionError(f"heavy modules were imported: {heavy}")
    median = statistics.median(seconds[1:])
    return [Row("import dpmesh, dpmesh_grpc", median, "s", "at most 0.25, no scipy, pandas")]
