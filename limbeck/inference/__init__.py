"""Inference: getting a model's answers with less work: what is drafted, compressed or skipped while it runs."""

from limbeck.inference import kv_cache
from limbeck.inference.experts import FewerExperts, expert_thresholds, token_importance
from limbeck.inference.speculative import Speculation, acceptance, expected_acceptance, residual, speculate, verify
from limbeck.inference.tokens import ThinnedTokens, redundancy

__all__ = [
    "FewerExperts",
    "Speculation",
    "ThinnedTokens",
    "acceptance",
    "expected_acceptance",
    "expert_thresholds",
    "kv_cache",
    "redundancy",
    "residual",
    "speculate",
    "token_importance",
    "verify",
]
