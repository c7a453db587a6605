"""Inference: getting a model's answers with less work."""

from limbeck.inference.speculative import Speculation, acceptance, expected_acceptance, residual, speculate, verify

__all__ = ["Speculation", "acceptance", "expected_acceptance", "residual", "speculate", "verify"]
