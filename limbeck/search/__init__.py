"""Search: which configuration to try next, or first."""

from limbeck.search.recommend import Recommender, Trial, rank_correlation

__all__ = ["Recommender", "Trial", "rank_correlation"]
