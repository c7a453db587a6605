"""Teachers: where training signals come from."""

from limbeck.teachers.averaged import AveragedTeacher
from limbeck.teachers.base import Teacher
from limbeck.teachers.cached import CachedTeacher, build_cache
from limbeck.teachers.ensemble import EnsembleTeacher
from limbeck.teachers.frozen import FrozenTeacher
from limbeck.teachers.past import EpochSnapshot, PastPredictions
from limbeck.teachers.selection import source_weights, task_similarity

__all__ = [
    "AveragedTeacher",
    "CachedTeacher",
    "EnsembleTeacher",
    "EpochSnapshot",
    "FrozenTeacher",
    "PastPredictions",
    "Teacher",
    "build_cache",
    "source_weights",
    "task_similarity",
]
