"""What a model is for: data splits, metrics, task loss, example inputs."""

from limbeck.tasks.base import Task
from limbeck.tasks.custom import CustomTask
from limbeck.tasks.extended import ExtendedTask
from limbeck.tasks.graphs import GraphClassification, NodeClassification
from limbeck.tasks.images import ImageClassification
from limbeck.tasks.language import LanguageModelling
from limbeck.tasks.masked import MaskedLanguageModelling
from limbeck.tasks.retrieval import Retrieval
from limbeck.tasks.segmentation import SemanticSegmentation
from limbeck.tasks.sequences import SequenceToSequence
from limbeck.tasks.text import TextClassification

__all__ = [
    "CustomTask",
    "ExtendedTask",
    "GraphClassification",
    "ImageClassification",
    "LanguageModelling",
    "MaskedLanguageModelling",
    "NodeClassification",
    "Retrieval",
    "SemanticSegmentation",
    "SequenceToSequence",
    "Task",
    "TextClassification",
]
