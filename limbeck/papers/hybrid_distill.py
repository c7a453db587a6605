"""Hybrid Distill: one teacher lends its features, another its token relations, and redundant tokens are left out.

    L = a smooth L1 of (g(h_s), standardized h_labels) + b (KL of softmax(Q K^T / sqrt(d)) + KL of softmax(V V^T / sqrt(d)), masked teacher)

Idea: a supervised (or contrastive) teacher tells classes apart but attends alike in all heads of its upper layers; a teacher of
masked images attends diversely and tells little apart. The student takes the last features of the first and the relations in the middle
of the second. On its way it drops the patches nearest to the mean of all, more and more of them, which saves work.
Source: Shi et al., "Hybrid Distillation: Connecting Masked Autoencoders with Contrastive Learners", ICLR 2024 (a = b = 1). No code was
released; read: the abstract and public reviews. Unsure: the layers of the relations, which shares of patches go where, and the score.
Pieces: `Hint(loss="smooth_l1", standardize=True)`, `TokenRelations`, `AtTokens` of `limbeck.objectives`, `ThinnedTokens` and
`redundancy` of `limbeck.inference`, `EnsembleTeacher`, `MaskedImages`.
Deviations: MNIST of 12x12 in 16 patches; teachers of 6 layers, trained with the labels and as a masked autoencoder on 5000 images; a
student of 3 layers and two thirds of the width, fine-tuned on 500 labels. Relations: the student's second layer,
the teacher's fourth. Without masking the loss is otherwise the same (`whole`). `diversity` is the mean cosine distance between
the attention maps of the heads of the student's last layer, after distillation, on the measured split.
Nothing is tuned: the weights are the paper's, steps and rates the bed's.
"""

from __future__ import annotations

from limbeck.beds.patches import PATCHES as BED
from limbeck.beds.patches import PatchBed
from limbeck.experiments import Arm, Comparison, Miniature, Paper, Run
from limbeck.inference import ThinnedTokens
from limbeck.measure import attention_patterns
from limbeck.objectives import AtTokens, Hint, Objective, TokenRelations
from limbeck.teachers import EnsembleTeacher, FrozenTeacher

DROPS = {0: 0.2, 1: 0.2, 2: 0.1}  # half of the patches are gone before the last block


def feature(student: int, teacher: int) -> Objective:
    """The last features of the ensemble's first member, which learnt from labels."""
    hint = Hint(
        f"model.blocks.{student}", f"0.blocks.{teacher}", loss="smooth_l1", standardize=True, projector="linear"
    )
    return AtTokens(hint, f"kept.{student}")


def relations(student: int, teacher: int, heads: int) -> Objective:
    """Query-key and value-value relations of the ensemble's second member, which learnt from masked images."""

    def names(path: str, *parts: str) -> tuple[str, ...]:
        return tuple(f"{path}.attention.{part}" for part in parts)

    own, target, kept = f"model.blocks.{student}", f"1.blocks.{teacher}", f"kept.{student}"
    keys = TokenRelations(names(own, "query", "key"), names(target, "query", "key"), heads=heads)
    values = TokenRelations(names(own, "value"), names(target, "value"), heads=heads)
    return AtTokens(keys, kept) + AtTokens(values, kept)


def hybrid(
    run: Run,
    features: float = 1.0,
    relating: float = 1.0,
    masking: bool = True,
    bed: PatchBed = BED,
    **changes,
) -> dict[str, float]:
    """Distil with these weights of the two terms, fine-tune with all tokens and measure."""
    teacher = EnsembleTeacher([FrozenTeacher(bed.supervised(run)), FrozenTeacher(bed.masked(run))])
    student, (depth, _) = bed.new_student(run), bed.teacher
    last = len(student.blocks) - 1
    loss = features * feature(last, depth - 1) + relating * relations(last // 2, depth // 2, bed.heads)
    bed.distil(run, ThinnedTokens(student, DROPS if masking else {}), loss, teacher, **changes)
    layer = f"blocks.{last}.attention.weights"
    patterns = attention_patterns(student, bed.task().batches(run.split, 250, limit=1000), [layer])[layer]
    found = bed.tuned(run, student, **changes)
    return found | {"diversity": patterns["head_distance"], "information": patterns["information"]}


paper = Paper(
    id=182,
    title="Hybrid Distillation: Connecting Masked Autoencoders with Contrastive Learners",
    claim="A student of a supervised and of a masked-image teacher is better than one of either, and keeps attention diverse.",
    composition="Distil(ThinnedTokens(student), EnsembleTeacher([supervised, masked]), AtTokens(Hint) + AtTokens(TokenRelations QK + VV))",
    method=Arm(hybrid, about="features of one teacher, relations of the other, half of the patches masked"),
    baseline=Arm(hybrid, {"relating": 0.0}, about="features of the supervised teacher alone"),
    control=Arm(hybrid, {"features": 0.0}, about="relations of the masked-image teacher alone"),
    others={"whole": Arm(hybrid, {"masking": False}, about="both, all patches")},
    comparisons=(
        Comparison(text="better than features alone"),
        Comparison(against="control", text="better than relations alone"),
        Comparison("diversity", text="more diverse attention than with features alone"),
        Comparison(against="whole", margin=0.01, decisive=False, text="masking costs at most a point"),
    ),
    miniature=Miniature(beds=(BED,), seeds=3, equal=("steps", "samples", "parameters")),
    metric="accuracy",
    left_out="ImageNet, COCO, ADE20K; contrastive and image-text teachers; how much time masking saves.",
)
