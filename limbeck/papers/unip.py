"""UNIP: a small vision transformer is pre-trained on the attention of the one teacher layer that is neither local nor global.

    L = mean over heads and tokens of KL(softmax(Q_t K_t^T / sqrt(d)) || softmax(Q_s K_s^T / sqrt(d))),   the student's last layer

The teacher's layer is the one whose attention has a normalized mutual information between queries and keys nearest to 0.09 (high:
each token looks near itself; low: all look at the same places). Idea: that hybrid pattern is what carries over to images of
another kind, such as infrared, where texture misleads; the last layer of a teacher is too global.
Source: Zhang et al., "UNIP: Rethinking Pre-trained Attention Patterns for Infrared Semantic Segmentation", ICLR 2025; the authors'
public pre-training code was read: the same divergence, class token included, student heads as many as the teacher's.
Pieces: `attention_patterns` of `limbeck.measure`, `nearest_layer` and `TokenRelations` of `limbeck.objectives`, `MaskedImages`.
Deviations: MNIST of 12x12 in 16 patches; the teacher is a masked autoencoder of 6 layers on 5000 images; a student of 3 layers and
two thirds of the width; fine-tuning is classification of negatives with 500 labels in place of segmentation of infrared images. The
information is measured on 1000 training images. Nothing is tuned: steps and rates are the bed's.
Second attempt: on the first bed (grey CIFAR-10 of 20x20, 1000 labels, 200 steps of fine-tuning) no arm learnt more than 0.22 of ten
classes, so it could tell nothing; bed and steps were then set by the accuracy of an untaught student alone (0.36, seed 1000).
Baseline: the attention of the teacher's last layer. Control: the student is a masked autoencoder itself, for as many steps.
What came out: attention of any layer is 9 to 14 points above features and above masked images on average, seeds differ by as much,
and the rule chooses the first layer, which is no better than the others. In this small teacher information does not order the layers.
"""

from __future__ import annotations

from limbeck.beds.patches import NEGATIVES as BED
from limbeck.beds.patches import PatchBed
from limbeck.experiments import Arm, Comparison, Miniature, Paper, Run
from limbeck.measure import attention_patterns
from limbeck.models.vit import ViT
from limbeck.objectives import Hint, Objective, TokenRelations, nearest_layer
from limbeck.training import MaskedImages

HYBRID = 0.09  # normalized mutual information of the layer that is chosen


def hybrid_layer(run: Run, bed: PatchBed, teacher: ViT) -> int:
    """The teacher's layer whose attention is between local and global."""
    layers = {f"blocks.{i}.attention.weights": i for i in range(len(teacher.blocks))}
    found = attention_patterns(teacher, bed.task().batches("train", 250, limit=1000), list(layers))
    values = {layer: pattern["information"] for layer, pattern in found.items()}
    chosen = layers[nearest_layer(values, HYBRID)]
    run.note(f"layer {chosen}; information by layer: {', '.join(f'{v:.3f}' for v in values.values())}")
    return chosen


def attention(student: int, teacher: int, heads: int) -> Objective:
    """The attention maps of two layers."""
    own, target = (
        tuple(f"blocks.{layer}.attention.{name}" for name in ("query", "key")) for layer in (student, teacher)
    )
    return TokenRelations(own, target, heads=heads)


def attend(run: Run, layer: int | None = None, bed: PatchBed = BED, **changes) -> dict[str, float]:
    """Distil the attention of a layer of the teacher (None: the hybrid one; -1: the last), fine-tune and measure."""
    teacher, student = bed.masked(run), bed.new_student(run)
    chosen = hybrid_layer(run, bed, teacher) if layer is None else layer % len(teacher.blocks)
    loss = attention(len(student.blocks) - 1, chosen, bed.heads)
    return bed.tuned(run, bed.distil(run, student, loss, teacher, **changes), **changes)


def features(run: Run, bed: PatchBed = BED, **changes) -> dict[str, float]:
    """Distil what the last layer says, through a projector, fine-tune and measure."""
    teacher, student = bed.masked(run), bed.new_student(run)
    loss = Hint(f"blocks.{len(student.blocks) - 1}", f"blocks.{len(teacher.blocks) - 1}")
    return bed.tuned(run, bed.distil(run, student, loss, teacher, **changes), **changes)


def masked(run: Run, bed: PatchBed = BED, **changes) -> dict[str, float]:
    """The student learns as the teacher did, for as many steps, fine-tune and measure."""
    student = bed.new_student(run)
    run.train(MaskedImages(student), bed.task(), bed.config(changes.get("steps", bed.distilling_steps)))
    return bed.tuned(run, student, **changes)


paper = Paper(
    id=181,
    title="UNIP: Rethinking Pre-trained Attention Patterns for Infrared Semantic Segmentation",
    claim="The attention of the teacher's hybrid layer is a better target of pre-training than its last layer's attention or features.",
    composition="Distil(TokenRelations(query-key of the last layer, of nearest_layer(information, 0.09))), then fine-tuning",
    method=Arm(attend, about="attention of the layer with information nearest 0.09"),
    baseline=Arm(attend, {"layer": -1}, about="attention of the last layer"),
    control=Arm(masked, about="masked images, no teacher"),
    others={
        "features": Arm(features, about="features of the last layer through a projector"),
        "first": Arm(attend, {"layer": 0}, about="attention of the first layer"),
        "middle": Arm(attend, {"layer": 2}, about="attention of the third of six layers"),
    },
    comparisons=(
        Comparison(text="better than the last layer's attention"),
        Comparison(against="features", text="better than the last layer's features"),
        Comparison(against="control", text="better than masked images without a teacher"),
        Comparison(against="first", decisive=False, text="better than the first layer's attention"),
        Comparison(against="middle", decisive=False, text="better than the third layer's attention"),
    ),
    miniature=Miniature(beds=(BED,), seeds=3, equal=("steps", "samples", "parameters")),
    metric="accuracy",
    left_out="Segmentation, infrared data, the feature pyramid of the last layer, contrastive teachers, the claim of a tenth of the cost.",
)
