"""What receivers do with noisy data: unbiased estimates with confidence intervals, from the policy alone.

Example::

    reader = dpmesh.estimate.Reader(FlightReport)
    reader.mean("air_time", reports)              # 154.2 [147.9, 160.5]
    reader.frequencies("carrier", reports)        # {"CARRIER_UA": 0.171 [0.156, 0.186], ...}
"""

from dpmesh.estimate.accumulator import Accumulator
from dpmesh.estimate.distribution import Distribution
from dpmesh.estimate.pooled import PooledAccumulator
from dpmesh.estimate.reader import Reader
from dpmesh.estimate.result import Estimate, EstimateError
from dpmesh.estimate.vectors import VectorEstimate

__all__ = [
    "Accumulator",
    "Distribution",
    "Estimate",
    "EstimateError",
    "PooledAccumulator",
    "Reader",
    "VectorEstimate",
]
