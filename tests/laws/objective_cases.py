"""The cases of the laws: one setting of every public objective and the shape of what it reads."""

import dataclasses

import torch
from torch import Tensor

from limbeck.objectives import (
    AdaptiveKL,
    AngleRelations,
    AtExit,
    AtPlaces,
    AttentionTransfer,
    AtTokens,
    BalancedDivergence,
    BinaryTargets,
    CalibratedTargets,
    ConditionalInformation,
    CorrelationTargets,
    CrossEntropy,
    DecoupledKD,
    DeviationAware,
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
    MarginHint,
    MaskedHints,
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
    TopKTargets,
    TotalVariation,
    TransformedTargets,
    UniversalSelfKD,
    VariationalHint,
    WeightedSoftTargets,
    WhereCorrect,
)

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
    "top_k": Case(TopKTargets(k=2, weight=0.5), TOKENS),
    "top_k-reverse": Case(TopKTargets(k=1, head="reverse", rest="forward")),
    "standardized": Case(StandardizedTargets(), TOKENS),
    "transformed": Case(TransformedTargets(), distance=False),
    "transformed-weighted": Case(TransformedTargets(weighted=True), TOKENS, distance=False),
    "weighted_soft_targets": Case(WeightedSoftTargets(), TOKENS),
    "deviation_aware": Case(DeviationAware(0.5, 2.0), TOKENS),
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
    "at_places": Case(AtPlaces(SoftTargets(2.0)), MAPS),
    "at_places-sum": Case(AtPlaces(SoftTargets(1.0) + MeanSquaredError()), MAPS),
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
    "hint-unit": Case(Hint("layer", loss="l1", normalize=True), TOKENS),
    "hint-unit-maps": Case(Hint("layer", normalize=True), MAPS),
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
    "token_relations-direction": Case(
        TokenRelations("layer", "layer", heads=1, loss="direction"), TOKENS, per_example=False
    ),
    "hint-direction": Case(Hint("layer", loss="direction"), TOKENS, per_example=False),
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
    "masked": Case(MaskedHints("layer"), MAPS, learned=True, distance=False),
    "masked-tokens": Case(MaskedHints("layer", masks=2, weighting="share"), TOKENS, learned=True, distance=False),
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
