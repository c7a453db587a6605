"""Laws that every public objective keeps. A new objective without an entry in CASES fails the first test."""

import copy
import dataclasses
import inspect

import pytest
import torch
from torch import Tensor

import limbeck.objectives as room
from limbeck.errors import UsageError
from limbeck.objectives import (
    AdaptiveKL,
    AngleRelations,
    AtExit,
    AttentionTransfer,
    AtTokens,
    BalancedDivergence,
    BinaryTargets,
    CalibratedTargets,
    ConditionalInformation,
    CorrelationTargets,
    CrossEntropy,
    DecoupledKD,
    Discriminator,
    DistanceRelations,
    EmbeddingDistance,
    EnhancedTargets,
    ExcessTargets,
    ExpertBalance,
    FeatureCorrelation,
    GramInformation,
    HardTargets,
    Hint,
    InterpolatedTargets,
    JensenShannon,
    KernelAlignment,
    LargeVocabulary,
    LayeredSelfDistillation,
    MappedClasses,
    MappedTokens,
    MarginHint,
    MatrixOrientation,
    MeanSquaredError,
    MemoryContrast,
    MixedTargets,
    MultiLevelTargets,
    MutualInformation,
    NeuronSelectivity,
    NormalizedKD,
    NormDirection,
    Objective,
    OnSignal,
    PairedContrast,
    PriorAdjusted,
    RankedTargets,
    ReverseKL,
    ReviewHints,
    Scheduled,
    ShieldedTargets,
    SimilarityDistillation,
    SingularHints,
    SinkhornTargets,
    SkewKL,
    SoftTargets,
    SortedTargets,
    Standardized,
    StandardizedTargets,
    Sum,
    SymmetricKL,
    TokenContrast,
    TokenGraph,
    TokenRelations,
    TotalVariation,
    TransformedTargets,
    UniversalSelfKD,
    VariationalHint,
    WeightedSoftTargets,
    WhereCorrect,
)
from limbeck.objectives.logits.targets import TeacherTargets
from limbeck.signals import Signals

B, L, D = 6, 5, 4
VECTORS, TOKENS, MAPS = (B, D), (B, L, D), (B, D, 3, 3)


@dataclasses.dataclass(frozen=True)
class Case:
    """One setting of one objective and the shape of the signal it reads."""

    objective: Objective
    shape: tuple[int, ...] = VECTORS
    reads_teacher: bool = True
    per_example: bool = True  # the loss of a batch is the mean of the losses of its examples
    constants: tuple[tuple[str, Tensor], ...] = ()  # signals that stay as they are
    distance: bool = True  # a student that equals its teacher costs nothing
    learned: bool = (
        False  # its connectors see all of a feature, so agreement costs something and the features' order matters
    )

    @property
    def signal(self) -> str:
        return next(iter(self.objective.reads.student - dict(self.constants).keys()))

    @property
    def counts_labels(self) -> bool:
        """Whether a position labelled -100 is left out (a hidden state of an unlabelled token still counts)."""
        objective = getattr(self.objective, "objective", self.objective)
        labelled = isinstance(objective, (ConditionalInformation, CrossEntropy, Sum, UniversalSelfKD))
        return labelled or getattr(objective, "positions", "") == "labelled"

    @property
    def width_axis(self) -> int:
        return 1 if len(self.shape) == 4 else -1


IDENTITY = (("head:weight", torch.eye(D)), ("head:bias", torch.zeros(D)))
STATISTICS = (("bn:weight", torch.ones(D)), ("bn:bias", torch.zeros(D)))
CASES = {
    "cross_entropy": Case(CrossEntropy(), reads_teacher=False),
    "cross_entropy-smoothed": Case(CrossEntropy(label_smoothing=0.2), reads_teacher=False),
    "cross_entropy-tokens": Case(CrossEntropy(), TOKENS, reads_teacher=False),
    "soft_targets": Case(SoftTargets()),
    "soft_targets-cold": Case(SoftTargets(temperature=0.7)),
    "soft_targets-tokens": Case(SoftTargets(temperature=2.0), TOKENS),
    "soft_targets-all": Case(SoftTargets(positions="all"), TOKENS),
    "reverse_kl": Case(ReverseKL(2.0)),
    "symmetric_kl": Case(SymmetricKL(2.0, forward=0.3), TOKENS),
    "jensen_shannon": Case(JensenShannon(beta=0.3), TOKENS),
    "skew_forward": Case(SkewKL()),
    "skew_reverse": Case(SkewKL(2.0, direction="reverse"), TOKENS),
    "total_variation": Case(TotalVariation(), TOKENS),
    "adaptive_kl": Case(AdaptiveKL(), TOKENS),
    "standardized": Case(StandardizedTargets(), TOKENS),
    "transformed": Case(TransformedTargets(), distance=False),
    "transformed-weighted": Case(TransformedTargets(weighted=True), TOKENS, distance=False),
    "weighted_soft_targets": Case(WeightedSoftTargets(), TOKENS),
    "correlation": Case(CorrelationTargets(), TOKENS, per_example=False),
    "correlation-inter": Case(CorrelationTargets(intra=0.0)),
    "sinkhorn": Case(SinkhornTargets(), per_example=False, distance=False),
    "sinkhorn-tokens": Case(SinkhornTargets(1.0, blur=0.05, iterations=5), TOKENS, per_example=False, distance=False),
    "multi_level": Case(MultiLevelTargets(), per_example=False),
    "multi_level-tokens": Case(MultiLevelTargets((1.0, 4.0), batch=0.5, class_=0.2), TOKENS, per_example=False),
    "ranked": Case(RankedTargets(), distance=False),
    "ranked-tokens": Case(RankedTargets(temperature=2.0), TOKENS, distance=False),
    "interpolated": Case(InterpolatedTargets(), learned=True),
    "interpolated-tokens": Case(InterpolatedTargets(0.2, progress="cross_entropy"), TOKENS, learned=True),
    "standardized-any": Case(Standardized(SoftTargets(temperature=1.0))),
    "standardized-sum": Case(Standardized(CrossEntropy() + 9 * SoftTargets(temperature=1.0)), TOKENS, distance=False),
    "standardized-labels": Case(Standardized(CrossEntropy()), reads_teacher=False),
    "information": Case(ConditionalInformation(), reads_teacher=False, per_example=False, learned=True),
    "information-tokens": Case(ConditionalInformation(), TOKENS, reads_teacher=False, per_example=False, learned=True),
    "large_vocabulary": Case(LargeVocabulary(SoftTargets(2.0), "head", "head", 3), TOKENS, constants=IDENTITY),
    "large_vocabulary-labels": Case(
        LargeVocabulary(CrossEntropy(), "head", "head", 2), TOKENS, reads_teacher=False, constants=IDENTITY
    ),
    "mapped": Case(MappedClasses(SoftTargets(2.0), classes=(0, 1, 2, 3))),
    "mapped-labelled": Case(MappedClasses(DecoupledKD(), (0, 1, 2, 3)), TOKENS),
    "sorted": Case(SortedTargets()),
    "sorted-tokens": Case(SortedTargets(2.0), TOKENS),
    "mean_squared_error": Case(MeanSquaredError()),
    "mean_squared_error-tokens": Case(MeanSquaredError(), TOKENS),
    "balanced": Case(BalancedDivergence()),
    "balanced-tokens": Case(BalancedDivergence(0.5, 1.0, delta=3.0, temperature=1.0), TOKENS),
    "binary": Case(BinaryTargets(), distance=False),
    "binary-tokens": Case(BinaryTargets(2.0), TOKENS, distance=False),
    "mixed": Case(MixedTargets(), distance=False),
    "mixed-tokens": Case(MixedTargets(share=0.3), TOKENS, distance=False),
    "normalized": Case(NormalizedKD(), distance=False),
    "normalized-tokens": Case(NormalizedKD(gamma=3.5, temperature=3.0), TOKENS, distance=False),
    "decoupled": Case(DecoupledKD()),
    "decoupled-tokens": Case(DecoupledKD(alpha=2.0, beta=0.5, temperature=0.7), TOKENS),
    "enhanced": Case(EnhancedTargets(), distance=False),
    "enhanced-tokens": Case(EnhancedTargets(1.2, label=False, temperature=2.0), TOKENS, distance=False),
    "enhanced-all": Case(EnhancedTargets(raised="all"), distance=False),
    "exit": Case(AtExit("layer", SoftTargets()), learned=True, distance=False),
    "exit-enhanced": Case(AtExit("layer", EnhancedTargets(label=False)), learned=True, distance=False),
    "universal_self": Case(UniversalSelfKD(), reads_teacher=False, per_example=False),
    "layered": Case(
        LayeredSelfDistillation(("layer", "layer"), classes=D), reads_teacher=False, learned=True, distance=False
    ),
    "layered-maps": Case(
        LayeredSelfDistillation(("layer", "layer"), classes=D, features_weight=0),
        MAPS,
        reads_teacher=False,
        learned=True,
    ),
    "exit-member": Case(AtExit("layer", SoftTargets(), teacher="1.logits"), learned=True, distance=False),
    "calibrated": Case(CalibratedTargets(0.3, 0.5, 0.9), distance=False, per_example=False),
    "calibrated-tokens": Case(CalibratedTargets(0.0, 0.0, 1.0), TOKENS, distance=False),
    "discriminator": Case(Discriminator(), learned=True, distance=False),
    "discriminator-tokens": Case(Discriminator(False, (4, 4)), TOKENS, learned=True, distance=False),
    "hard": Case(HardTargets(), distance=False),
    "hard-tokens": Case(HardTargets((1.0, 1.0, 1.0, 1.0)), TOKENS, distance=False),
    "on_signal": Case(OnSignal("layer", SoftTargets(2.0), "other")),
    "on_signal-labels": Case(OnSignal("layer", CrossEntropy()), TOKENS, reads_teacher=False),
    "paired_contrast": Case(PairedContrast(), (B, 2, D), reads_teacher=False, per_example=False),
    "prior": Case(PriorAdjusted(SoftTargets(2.0), (5, 5, 5, 5), 0.5)),
    "prior-labels": Case(PriorAdjusted(CrossEntropy(), (5, 5, 5, 5)), TOKENS, reads_teacher=False),
    "where_correct": Case(WhereCorrect(SoftTargets(1.0)), TOKENS, per_example=False),
    "where_correct-student": Case(
        WhereCorrect(CrossEntropy(), "student"), TOKENS, reads_teacher=False, per_example=False
    ),
    "scheduled": Case(Scheduled(SoftTargets())),
    "hint-vectors": Case(Hint("layer")),
    "hint-tokens": Case(Hint("layer"), TOKENS),
    "hint-maps": Case(Hint("layer"), MAPS),
    "hint-l1": Case(Hint("layer", loss="l1"), MAPS),
    "hint-cosine": Case(Hint("layer", loss="cosine"), MAPS),
    "hint-norm": Case(Hint("layer", loss="half_squared_norm"), MAPS),
    "hint-norm-tokens": Case(Hint("layer", loss="half_squared_norm"), TOKENS),
    "embedding": Case(EmbeddingDistance()),
    "embedding-cosine": Case(EmbeddingDistance(mean_squared_error=0.0, cosine=1.0)),
    "embedding-both-normalized": Case(EmbeddingDistance(cosine=0.5, normalize=True), TOKENS),
    "hint-smooth": Case(Hint("layer", loss="smooth_l1"), TOKENS),
    "hint-standardized": Case(Hint("layer", standardize=True), MAPS, distance=False),
    "at_tokens": Case(AtTokens(Hint("layer"), "kept"), constants=(("kept", torch.arange(2)),)),
    "hint-plain-norm": Case(Hint("layer", loss="norm"), TOKENS),
    "matrix_orientation": Case(MatrixOrientation("matrix", "matrix"), MAPS),
    "expert_balance": Case(ExpertBalance("router"), TOKENS, reads_teacher=False, per_example=False),
    "expert_balance-two": Case(ExpertBalance("router", top=2), reads_teacher=False, per_example=False),
    "excess": Case(ExcessTargets(keep=0.5), per_example=False),
    "excess-tokens": Case(ExcessTargets(temperature=2.0), TOKENS, per_example=False),
    "mutual_information": Case(MutualInformation("layer", "layer"), per_example=False, learned=True),
    "mutual_information-batch": Case(MutualInformation("layer", "layer", 1.0), TOKENS, per_example=False, learned=True),
    "shielded": Case(ShieldedTargets(noise=0.0)),
    "shielded-tokens": Case(ShieldedTargets(temperature=2.0, private_temperature=5.0, noise=0.0), TOKENS),
    "similarity-kl": Case(SimilarityDistillation(temperature=0.5), per_example=False),
    "similarity-mse": Case(SimilarityDistillation(loss="mse"), per_example=False),
    "token_relations": Case(TokenRelations("layer", "layer", heads=1), TOKENS),
    "token_relations-mse": Case(TokenRelations(["layer"], ["layer"], heads=1, loss="mse"), TOKENS),
    "token_relations-maps": Case(TokenRelations("layer", "layer", heads=1, loss="maps"), TOKENS),
    "token_relations-places": Case(TokenRelations("layer", "layer", heads=1), MAPS),
    "token_graph": Case(TokenGraph("layer", neighbours=3), TOKENS, per_example=False),
    "token_graph-forward": Case(TokenGraph("layer", sigma=0.2, direction="forward"), MAPS, per_example=False),
    "token_contrast": Case(TokenContrast("layer"), TOKENS, per_example=False, learned=True),
    "token_contrast-places": Case(TokenContrast("layer", temperature=0.1), MAPS, per_example=False, learned=True),
    "token_relations-causal": Case(TokenRelations("layer", "layer", heads=1, causal=True), TOKENS),
    "similarity-kernel": Case(SimilarityDistillation(loss="kernel"), per_example=False),
    "similarity-gram": Case(SimilarityDistillation(loss="gram"), MAPS, per_example=False),
    "similarity-gram-tokens": Case(SimilarityDistillation(loss="gram"), TOKENS, per_example=False),
    "distances": Case(DistanceRelations(), per_example=False),
    "angles": Case(AngleRelations(), MAPS, per_example=False),
    "kernel_alignment": Case(KernelAlignment(), TOKENS, per_example=False),
    "correlation_of_features": Case(FeatureCorrelation(projector="none"), per_example=False, distance=False),
    "correlation_of_features-projected": Case(FeatureCorrelation(), MAPS, per_example=False, learned=True),
    "gram_information": Case(GramInformation(), TOKENS, per_example=False, distance=False),
    "gram_information-plain": Case(GramInformation(logarithm=False), per_example=False, distance=False),
    "attention_transfer": Case(AttentionTransfer("layer"), MAPS),
    "attention_transfer-mse": Case(AttentionTransfer("layer", loss="mse", power=3.0), TOKENS),
    "attention_transfer-max": Case(AttentionTransfer("layer", statistic="max"), TOKENS),
    "neuron_selectivity": Case(NeuronSelectivity("layer"), MAPS),
    "neuron_selectivity-tokens": Case(NeuronSelectivity("layer", degree=3, offset=1.0), TOKENS),
    "variational": Case(VariationalHint("layer"), MAPS, learned=True),
    "variational-tokens": Case(VariationalHint("layer", variance=1.0), TOKENS, learned=True),
    "margin": Case(
        MarginHint("layer", norm="bn"), MAPS, constants=STATISTICS, learned=True, per_example=False, distance=False
    ),
    "singular": Case(SingularHints(("layer", "layer")), MAPS),
    "singular-tokens": Case(SingularHints(("layer", "layer"), vectors=2), TOKENS),
    "review": Case(ReviewHints("layer"), MAPS, learned=True, per_example=False),
    "review-vectors": Case(ReviewHints("layer"), learned=True, per_example=False),
    "norm_direction": Case(NormDirection("layer"), distance=False),
    "norm_direction-classes": Case(NormDirection("layer", average="classes"), per_example=False, distance=False),
    "norm_direction-cosine": Case(NormDirection("layer", norm=False), distance=False),
    "memory_contrast": Case(MemoryContrast(B, "layer", "layer", width=3), learned=True, per_example=False),
    "memory_contrast-all": Case(
        MemoryContrast(B, "layer", "layer", others="examples", normalize=True), TOKENS, learned=True, per_example=False
    ),
    "similarity-tokens": Case(SimilarityDistillation(temperature=0.5), TOKENS, per_example=False),
}


def cases(wanted):
    """Run a test over the cases that `wanted` accepts."""
    found = {name: case for name, case in CASES.items() if wanted(case)}
    return pytest.mark.parametrize("case", found.values(), ids=found)


every = cases(lambda case: True)
of_teachers = cases(lambda case: case.reads_teacher)
fixed = cases(lambda case: not case.learned)
per_example = cases(lambda case: case.per_example)


def example(case: Case, seed: int = 0, scale: float = 1.0) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Student's signal, teacher's signal and a batch without masks."""
    draw = torch.Generator().manual_seed(seed)
    student, teacher = (scale * torch.randn(case.shape, generator=draw) for _ in range(2))
    labels = torch.randint(0, D, case.shape[:-1] if len(case.shape) < 4 else (B,), generator=draw)
    degrees = torch.rand(labels.shape, generator=draw)  # how private each target is
    return student, teacher, {"labels": labels, "index": torch.arange(B), "private": degrees}


def answers(case: Case, teacher: Tensor) -> Signals:
    """The teacher's signals. What else an objective reads of it (a reference's logits) is a function of each entry."""
    fixed = dict(case.constants)
    names = sorted((case.objective.reads.teacher or {case.signal}) - fixed.keys())
    return Signals({name: teacher * (-0.5) ** at for at, name in enumerate(names)} | fixed)


def value(case: Case, student: Tensor, teacher: Tensor, batch, objective: Objective | None = None) -> Tensor:
    objective = objective or case.objective
    own = Signals({case.signal: student, **dict(case.constants)})
    return objective(own, answers(case, teacher), batch, connectors(case, objective)).value


def connectors(case: Case, objective: Objective) -> dict[str, torch.nn.Module]:
    """The same connectors for a case in every test, also for sums of two of its kind."""
    if not case.learned:
        return {}
    torch.manual_seed(0)
    student, teacher, _ = example(case)
    made = case.objective.connectors(Signals({case.signal: student}), answers(case, teacher))
    return (
        made
        if objective is case.objective
        else {f"{i}_{n}": copy.deepcopy(m) for i in range(2) for n, m in made.items()}
    )


def gradient(case: Case, student: Tensor, teacher: Tensor, batch) -> Tensor:
    student = student.clone().requires_grad_()
    value(case, student, teacher, batch).backward()
    return student.grad


def take(batch, rows):
    return {name: entry[rows] for name, entry in batch.items()}


def public_objectives():
    found = (getattr(room, name) for name in room.__all__)
    bases = ("Objective", "Sum")
    return {o for o in found if inspect.isclass(o) and issubclass(o, Objective) and o.__name__ not in bases}


def test_every_public_objective_has_a_case():
    known = {type(case.objective) for case in CASES.values()} | {MappedTokens}  # which is MappedClasses of two folders
    assert public_objectives() == known


@every
def test_it_is_a_frozen_dataclass_and_hashable(case):
    assert dataclasses.is_dataclass(case.objective)
    assert case.objective == dataclasses.replace(case.objective)
    hash(case.objective)
    with pytest.raises(dataclasses.FrozenInstanceError):
        case.objective.name = "other"


@cases(lambda case: case.reads_teacher and case.distance and not case.learned)
def test_a_teacher_that_agrees_costs_nothing(case):
    student, _, batch = example(case)
    open_ = batch | {"private": torch.zeros_like(batch["private"])}  # a private target is not the teacher's
    assert abs(float(value(case, student, student.clone(), open_))) < 1e-6


@of_teachers
def test_a_teacher_that_differs_costs_something(case):
    student, teacher, batch = example(case)
    cost = value(case, student, teacher, batch).detach()
    assert abs(float(cost)) > 1e-3 if case.learned else float(cost) > 1e-3


@every
def test_weights_scale_and_weight_zero_removes(case):
    student, teacher, batch = example(case)
    alone = value(case, student, teacher, batch)
    torch.testing.assert_close(value(case, student, teacher, batch, 2.5 * case.objective), 2.5 * alone)
    doubled = value(case, student, teacher, batch, case.objective + case.objective)
    torch.testing.assert_close(doubled, 2 * alone)
    other = MeanSquaredError()
    both = 0 * case.objective + other
    assert both.reads == other.reads
    signals = Signals({"logits": student}), Signals({"logits": teacher})
    if len(case.shape) < 4:
        torch.testing.assert_close(both(*signals, batch).value, other(*signals, batch).value)
    with pytest.raises(UsageError, match="weight 0"):
        value(case, student, teacher, batch, 0 * case.objective)


@every
def test_the_gradient_reaches_the_student_and_never_the_teacher(case):
    student, teacher, batch = example(case)
    student.requires_grad_(), teacher.requires_grad_()
    value(case, student, teacher, batch).backward()
    assert bool(student.grad.isfinite().all())
    assert float(student.grad.abs().max()) > 1e-6
    assert teacher.grad is None


@every
def test_order_of_the_batch_does_not_matter(case):
    student, teacher, batch = example(case)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(
        value(case, student[order], teacher[order], take(batch, order)), value(case, student, teacher, batch)
    )


@fixed
def test_order_of_the_classes_or_features_does_not_matter(case):
    student, teacher, batch = example(case)
    order = torch.tensor([2, 0, 3, 1])
    renamed = batch | {"labels": order.argsort()[batch["labels"]]}
    moved = (x.index_select(case.width_axis, order) for x in (student, teacher))
    torch.testing.assert_close(value(case, *moved, renamed), value(case, student, teacher, batch))


@per_example
def test_a_batch_is_the_mean_of_its_examples(case):
    student, teacher, batch = example(case)
    each = [value(case, student[i : i + 1], teacher[i : i + 1], take(batch, slice(i, i + 1))) for i in range(B)]
    torch.testing.assert_close(torch.stack(each).mean(), value(case, student, teacher, batch))


@every
def test_an_example_of_weight_zero_is_not_there(case):
    student, teacher, batch = example(case)
    weight = torch.tensor([1.0, 0, 1, 1, 0, 1])
    kept = weight.nonzero().squeeze(1)
    student[weight == 0], teacher[weight == 0] = torch.nan, torch.nan
    weighted = batch | {"sample_weight": weight}
    expected = value(case, student[kept], teacher[kept], take(batch, kept))
    torch.testing.assert_close(value(case, student, teacher, weighted), expected)
    slope = gradient(case, student, teacher, weighted)
    assert float(slope[weight == 0].abs().max()) == 0
    torch.testing.assert_close(slope[kept], gradient(case, student[kept], teacher[kept], take(batch, kept)))


@per_example
def test_weights_count_as_repetitions(case):
    student, teacher, batch = example(case)
    rows = torch.tensor([0, 1, 1, 1, 2, 3, 4, 5])
    expected = value(case, student[rows], teacher[rows], take(batch, rows))
    weighted = batch | {"sample_weight": torch.tensor([1.0, 3, 1, 1, 1, 1])}
    torch.testing.assert_close(value(case, student, teacher, weighted), expected)


def padding_is_absent(case: Case, masked: dict[str, Tensor]) -> None:
    """The last two tokens do not count: same loss as without them, no gradient to them, not even from NaN."""
    student, teacher, batch = example(case)
    student[:, 3:], teacher[:, 3:] = torch.nan, torch.nan
    padded, cut = batch | masked, batch | {name: batch[name][:, :3] for name in ("labels", "private")}
    torch.testing.assert_close(value(case, student, teacher, padded), value(case, student[:, :3], teacher[:, :3], cut))
    slope = gradient(case, student, teacher, padded)
    assert float(slope[:, 3:].abs().max()) == 0
    torch.testing.assert_close(slope[:, :3], gradient(case, student[:, :3], teacher[:, :3], cut))


@cases(lambda case: case.shape is TOKENS)
def test_padded_tokens_contribute_nothing(case):
    mask = torch.ones(B, L, dtype=torch.long)
    mask[:, 3:] = 0
    padding_is_absent(case, {"attention_mask": mask})


@cases(lambda case: case.shape is TOKENS and case.counts_labels)
def test_ignored_labels_contribute_nothing(case):
    labels = example(case)[2]["labels"].clone()
    labels[:, 3:] = -100
    padding_is_absent(case, {"labels": labels})


@every
def test_a_batch_where_nothing_counts_costs_nothing(case):
    student, teacher, batch = example(case)
    nothing = batch | {"sample_weight": torch.zeros(B)}
    assert float(value(case, student, teacher, nothing)) == 0
    assert float(gradient(case, student, teacher, nothing).abs().max()) == 0


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_is_computed_in_float32(case, dtype):
    student, teacher, batch = example(case, scale=3.0)
    student, teacher = student.to(dtype), teacher.to(dtype)
    loss = value(case, student, teacher, batch)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, value(case, student.float(), teacher.float(), batch), rtol=1e-6, atol=1e-7)
    with torch.autocast("cpu", torch.bfloat16):
        inside = value(case, student, teacher, batch)
    torch.testing.assert_close(inside, loss, rtol=1e-6, atol=1e-7)


@every
def test_extreme_values_give_no_nan(case):
    for draw in range(3):
        student, teacher, batch = example(case, seed=draw)
        student, teacher = 1e4 * student.sign(), 1e4 * teacher.sign()
        assert bool(value(case, student, teacher, batch).isfinite())
        assert bool(gradient(case, student, teacher, batch).isfinite().all())


@of_teachers
def test_it_reads_what_it_says(case):
    student, teacher, batch = example(case)
    empty = Signals({})
    with pytest.raises(UsageError, match="signal"):
        case.objective(empty, Signals({case.signal: teacher}), batch)
    with pytest.raises(UsageError, match="signal"):
        case.objective(Signals({case.signal: student}), empty, batch)


UNMAPPED = {type(case.objective): case for case in CASES.values() if isinstance(case.objective, TeacherTargets)}


@pytest.mark.parametrize("case", UNMAPPED.values(), ids=[made.__name__ for made in UNMAPPED])
def test_a_teacher_of_other_classes_is_refused_without_a_mapping(case):
    student, teacher, batch = example(case)
    wider = torch.cat([teacher, teacher[..., :1]], dim=-1)
    with pytest.raises(UsageError, match="student has 4 classes and the teacher 5"):
        value(case, student, wider, batch)


NONSENSE = [
    (lambda: SoftTargets(temperature=0), "temperature"),
    (lambda: SoftTargets(temperature=-1.0), "temperature"),
    (lambda: SoftTargets(temperature=float("nan")), "temperature"),
    (lambda: SoftTargets(temperature="4"), "temperature"),
    (lambda: SoftTargets(positions="some"), "positions"),
    (lambda: SoftTargets(classes=(1,)), "classes"),
    (lambda: SoftTargets(classes=(1, 1)), "classes"),
    (lambda: SoftTargets(student_classes=(2,)), "student_classes"),
    (lambda: EnhancedTargets(gamma=0.0), "gamma"),
    (lambda: EnhancedTargets(raised="none"), "raised"),
    (lambda: AtExit("layer*", SoftTargets()), "one signal"),
    (lambda: AtExit("layer", Hint("other")), "logits alone"),
    (lambda: AtExit("layer", SoftTargets(), depth=-1), "depth"),
    (lambda: CrossEntropy(label_smoothing=1.0), "label_smoothing"),
    (lambda: CrossEntropy(label_smoothing=-0.1), "label_smoothing"),
    (lambda: BalancedDivergence(forward=0.0), "forward"),
    (lambda: BalancedDivergence(delta=0.0), "delta"),
    (lambda: BalancedDivergence(overconfident="both"), "overconfident"),
    (lambda: BalancedDivergence(reverse=-1.0), "reverse"),
    (lambda: MixedTargets(share=1.1), "share"),
    (lambda: MixedTargets(epochs=0), "epochs"),
    (lambda: MixedTargets(positions="all"), "labels"),
    (lambda: NormalizedKD(gamma=0.0), "gamma"),
    (lambda: NormalizedKD(temperature=-1.0), "temperature"),
    (lambda: NormalizedKD(positions="all"), "true class"),
    (lambda: DecoupledKD(beta=-8.0), "beta"),
    (lambda: DecoupledKD(alpha=float("nan")), "alpha"),
    (lambda: UniversalSelfKD(mu=0.0), "mu"),
    (lambda: UniversalSelfKD(smoothing=1.0), "smoothing"),
    (lambda: UniversalSelfKD("layer*"), "one signal"),
    (lambda: SinkhornTargets(blur=0.0), "blur"),
    (lambda: SinkhornTargets(iterations=0), "iterations"),
    (lambda: MultiLevelTargets(temperatures=()), "temperatures"),
    (lambda: MultiLevelTargets(temperatures=(2.0, -1.0)), "temperatures"),
    (lambda: MultiLevelTargets(instance=0, batch=0, class_=0), "nothing to minimize"),
    (lambda: MultiLevelTargets(batch=-1.0), "batch"),
    (lambda: RankedTargets(temperature=0.0), "temperature"),
    (lambda: RankedTargets(positions="all"), "true class"),
    (lambda: InterpolatedTargets(start=1.1), "start"),
    (lambda: InterpolatedTargets(end=0.0), "end"),
    (lambda: InterpolatedTargets(end=2.0), "end"),
    (lambda: InterpolatedTargets(rate=-1.0), "rate"),
    (lambda: InterpolatedTargets(momentum=1.0), "momentum"),
    (lambda: InterpolatedTargets(progress="loss"), "progress"),
    (lambda: Standardized(Hint("layer")), "logits alone"),
    (lambda: Standardized("soft"), "logits alone"),
    (lambda: MappedClasses(SoftTargets()), "how the classes correspond"),
    (lambda: MappedClasses(SoftTargets(), classes=(1, None)), "1 shared class"),
    (lambda: MappedClasses(SoftTargets(), classes=(1, 2, 1)), "named twice"),
    (lambda: MappedClasses(SoftTargets(), classes=(1, (2, 3), (0, 3))), "class 3 is named twice"),
    (lambda: MappedClasses(SoftTargets(), classes=(1, -1)), "class numbers"),
    (lambda: MappedClasses(SoftTargets(), classes=(1, ())), "class numbers"),
    (lambda: MappedClasses(SoftTargets(), student_names=("a", "b")), "how the classes correspond"),
    (
        lambda: MappedClasses(SoftTargets(), student_names=("a", "a"), teacher_names=("a", "b")),
        "two classes called 'a'",
    ),
    (lambda: MappedClasses(SoftTargets(classes=(0, 1)), classes=(0, 1)), "leave it out"),
    (lambda: MappedClasses(CrossEntropy(), classes=(0, 1)), "nothing to map"),
    (lambda: MappedClasses(Hint("layer"), classes=(0, 1)), "logits alone"),
    (lambda: SortedTargets(temperature=0.0), "temperature"),
    (lambda: SortedTargets(positions="some"), "positions"),
    (lambda: ConditionalInformation(decay=1.5), "decay"),
    (lambda: ConditionalInformation(decay=1.0), "give centroids"),
    (lambda: ConditionalInformation(centroids=((0.5, 0.4), (0.5, 0.5))), "sum to 1"),
    (lambda: ConditionalInformation(centroids=((1.0,),)), "sum to 1"),
    (lambda: Hint("layer*"), "one signal"),
    (lambda: Hint(""), "one signal"),
    (lambda: AtTokens("hint", "kept"), "must be an objective"),
    (lambda: AtTokens(Hint("layer"), "kept.*"), "one signal"),
    (lambda: Hint("layer", loss="mes"), "mse"),
    (lambda: Hint("layer", projector="conv"), "convolution"),
    (lambda: Hint("layer", resizing="crop"), "resizing"),
    (lambda: EmbeddingDistance(mean_squared_error=0.0), "nothing to minimize"),
    (lambda: EmbeddingDistance(cosine=-1.0), "cosine"),
    (lambda: SimilarityDistillation(temperature=0.0), "temperature"),
    (lambda: SimilarityDistillation(loss="ce"), "loss"),
    (lambda: AttentionTransfer("layer*"), "one signal"),
    (lambda: AttentionTransfer("layer", power=0), "power"),
    (lambda: AttentionTransfer("layer", statistic="mean"), "statistic"),
    (lambda: NeuronSelectivity("layer", degree=0), "degree"),
    (lambda: NeuronSelectivity("layer", offset=-1.0), "offset"),
    (lambda: DistanceRelations(delta=0.0), "delta"),
    (lambda: AngleRelations(""), "one signal"),
    (lambda: KernelAlignment(student="*"), "one signal"),
    (lambda: FeatureCorrelation(alpha=0.0), "alpha"),
    (lambda: GramInformation(projector="convolution"), "projector"),
    (lambda: VariationalHint("layer", variance=-1.0), "variance"),
    (lambda: MarginHint("layer", norm="bn:weight"), "colon"),
    (lambda: SingularHints("layer"), "at least 2"),
    (lambda: SingularHints(("a", "b"), ("a",)), "at least 2"),
    (lambda: SingularHints(("a", "b"), vectors=0), "vectors"),
    (lambda: ReviewHints(("a", "b"), ("a",)), "layers of the student"),
    (lambda: ReviewHints("a", width=0), "width"),
    (lambda: NormDirection("layer", average="batch"), "average"),
    (lambda: MemoryContrast(1), "examples"),
    (lambda: TokenGraph("layer", neighbours=0), "neighbours"),
    (lambda: TokenGraph("layer", sigma=0.0), "sigma"),
    (lambda: TokenGraph("layer", tokens=1), "tokens"),
    (lambda: TokenGraph("layer", direction="both"), "direction"),
    (lambda: TokenContrast("layer", final=0.0), "final"),
    (lambda: TokenContrast("layer", epochs=-1.0), "epochs"),
    (lambda: MemoryContrast(9, momentum=1.0), "momentum"),
    (lambda: MemoryContrast(9, negatives=0), "negatives"),
    (lambda: MemoryContrast(9, others="classmates"), "others"),
    (lambda: MatrixOrientation("*"), "one signal"),
    (lambda: ExpertBalance(top=0), "top"),
    (lambda: ExpertBalance(""), "router"),
    (lambda: Discriminator(hidden=(4,)), "hidden"),
    (lambda: Discriminator(adversarial=1), "adversarial"),
    (lambda: HardTargets(weights=(1.0, 0.0)), "weights"),
    (lambda: OnSignal("head*", SoftTargets()), "one signal"),
    (lambda: OnSignal("head", Hint("layer")), "logits alone"),
    (lambda: LayeredSelfDistillation(("layer",)), "layers"),
    (lambda: LayeredSelfDistillation(("a", "*")), "one signal"),
    (lambda: LayeredSelfDistillation(("a", "b"), pairing="all"), "pairing"),
    (lambda: LayeredSelfDistillation(("a", "b"), temperature=0), "temperature"),
    (lambda: LayeredSelfDistillation(("a", "b"), features_weight=-1), "features_weight"),
    (lambda: LayeredSelfDistillation(("a", "b"), classes=1), "classes"),
    (lambda: BinaryTargets(temperature=0.0), "temperature"),
    (lambda: CalibratedTargets(low=0.5, middle=0.3), "rise"),
    (lambda: CalibratedTargets(0.5, 0.5, 0.5), "nothing"),
    (lambda: CalibratedTargets(smoothing=1.0), "smoothing"),
    (lambda: CalibratedTargets(confidence="mean"), "confidence"),
    (lambda: CalibratedTargets(positions="all"), "labels"),
    (lambda: PairedContrast(scale=0.0), "scale"),
    (lambda: PairedContrast("exits.*"), "one signal"),
    (lambda: PriorAdjusted(SoftTargets(), (5, 0)), "counts"),
    (lambda: PriorAdjusted(SoftTargets(), (5, 3), float("nan")), "strength"),
    (lambda: PriorAdjusted(Hint("layer"), (5, 3)), "logits alone"),
    (lambda: WhereCorrect(SoftTargets(), "both"), "side"),
    (lambda: WhereCorrect(SoftTargets(positions="all")), "unlabelled"),
    (lambda: Scheduled(SoftTargets(), begin=-1), "begin"),
    (lambda: Scheduled(SoftTargets(), begin=3, end=2), "end"),
    (lambda: float("inf") * SoftTargets(), "finite"),
]


@pytest.mark.parametrize(("make", "named"), NONSENSE, ids=range(len(NONSENSE)))
def test_nonsense_is_refused_at_construction(make, named):
    with pytest.raises(UsageError, match=named):
        make()
