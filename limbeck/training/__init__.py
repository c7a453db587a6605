"""Training: one Trainer for every procedure, its configuration and checkpoints that survive a kill."""

from limbeck.training.balance import GradientNormBalance, UncertaintyBalance
from limbeck.training.communication import Communication
from limbeck.training.config import TrainingConfig
from limbeck.training.constraints import Constrained
from limbeck.training.history import History
from limbeck.training.intervention import Intervention, TeacherIntervention, gradual_intervention
from limbeck.training.joint import Joint
from limbeck.training.masked_distillation import DistilMaskedImages
from limbeck.training.masked_images import MaskedImages
from limbeck.training.meta import Aggregator, MetaDistil
from limbeck.training.online import Online
from limbeck.training.procedures import Distil, Losses, Procedure, State, Supervised, TaskLoss
from limbeck.training.prototypes import PrototypeBranch, PrototypeDistil
from limbeck.training.residuals import residuals, reweighted
from limbeck.training.sharpness import SharpnessAware
from limbeck.training.sparse_tuning import SparseDelta, SparseTuning, most_changed, rewind, weights_of
from limbeck.training.trainer import Trainer
from limbeck.training.views import OnViews, TwoViews

__all__ = [
    "Aggregator",
    "Communication",
    "Constrained",
    "Distil",
    "DistilMaskedImages",
    "GradientNormBalance",
    "History",
    "Intervention",
    "Joint",
    "Losses",
    "MaskedImages",
    "MetaDistil",
    "OnViews",
    "Online",
    "Procedure",
    "PrototypeBranch",
    "PrototypeDistil",
    "SharpnessAware",
    "SparseDelta",
    "SparseTuning",
    "State",
    "Supervised",
    "TaskLoss",
    "TeacherIntervention",
    "Trainer",
    "TrainingConfig",
    "TwoViews",
    "UncertaintyBalance",
    "gradual_intervention",
    "most_changed",
    "residuals",
    "reweighted",
    "rewind",
    "weights_of",
]
