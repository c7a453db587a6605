"""Factorization: low-rank forms of weights."""

from limbeck.factorization.low_rank import LowRank

__all__ = ["LowRank"]
