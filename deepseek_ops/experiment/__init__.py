"""Assignment of units to variants.

Decision: assignment is a pure hash of the unit, no table: any process gives the same answer, a proxy that hashes the
same header can give it too, and nothing has to be stored or cleaned up. What it costs: a unit cannot be moved by hand.
"""

from deepseek_ops.experiment.assignment import BUCKETS, InvalidSharesError, assign, bucket

__all__ = ["BUCKETS", "InvalidSharesError", "assign", "bucket"]
