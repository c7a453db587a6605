"""Search: which architecture or configuration to try, and how good it may be before it is trained."""

from limbeck.search.evolution import Found, evolve
from limbeck.search.proxies import TeacherSimilarity
from limbeck.search.recommend import Recommender, Trial, rank_correlation

__all__ = ["Found", "Recommender", "TeacherSimilarity", "Trial", "evolve", "rank_correlation"]
