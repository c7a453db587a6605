"""Search: which architecture, and how good it may be before it is trained."""

from limbeck.search.evolution import Found, evolve
from limbeck.search.proxies import TeacherSimilarity, rank_correlation

__all__ = ["Found", "TeacherSimilarity", "evolve", "rank_correlation"]
