"""What a model is for: data splits, metrics, task loss, example inputs."""

from limbeck.tasks.base import Task
from limbeck.tasks.images import ImageClassification

__all__ = ["ImageClassification", "Task"]
