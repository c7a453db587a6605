"""Teachers: where training signals come from."""

from limbeck.teachers.annotations import Annotations, membership_logits
from limbeck.teachers.averaged import AveragedTeacher
from limbeck.teachers.base import Teacher
from limbeck.teachers.cached import CachedTeacher, build_cache
from limbeck.teachers.class_means import ClassMeans, class_means
from limbeck.teachers.ensemble import EnsembleTeacher
from limbeck.teachers.frozen import FrozenTeacher
from limbeck.teachers.past import EpochSnapshot, PastPredictions
from limbeck.teachers.retokenized import RetokenizedTeacher
from limbeck.teachers.selection import source_weights, task_similarity
from limbeck.teachers.subclasses import SubclassTeacher, class_clusters, class_projections

__all__ = [
    "Annotations",
    "AveragedTeacher",
    "CachedTeacher",
    "ClassMeans",
    "EnsembleTeacher",
    "EpochSnapshot",
    "FrozenTeacher",
    "PastPredictions",
    "RetokenizedTeacher",
    "SubclassTeacher",
    "Teacher",
    "build_cache",
    "class_clusters",
    "class_means",
    "class_projections",
    "membership_logits",
    "source_weights",
    "task_similarity",
]
