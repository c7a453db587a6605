"""Search: which architecture or configuration to try, how good it may be before it is trained, and where a budget goes."""

from limbeck.search.allocate import Allocation, Option, allocate, allocate_by_evolution
from limbeck.search.evolution import Found, evolve
from limbeck.search.proxies import TeacherSimilarity
from limbeck.search.recommend import Recommender, Trial, rank_correlation
from limbeck.search.sensitivity import hessian_trace, output_divergence, output_noise, weight_traces, with_weights

__all__ = [
    "Allocation",
    "Found",
    "Option",
    "Recommender",
    "TeacherSimilarity",
    "Trial",
    "allocate",
    "allocate_by_evolution",
    "evolve",
    "hessian_trace",
    "output_divergence",
    "output_noise",
    "rank_correlation",
    "weight_traces",
    "with_weights",
]
