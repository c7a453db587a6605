"""Objectives that tell an example from others: those of its batch, or those that a memory bank remembers."""

from limbeck.objectives.contrastive.information import MutualInformation
from limbeck.objectives.contrastive.memory import MemoryContrast

__all__ = ["MemoryContrast", "MutualInformation"]
