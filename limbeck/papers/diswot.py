"""DisWOT: choose the student that sees a batch as its teacher does, while both still have random weights.

    score = -(1/(C D) |corr(dL/dW_s) - corr(dL/dW_t)|^2 + 1/B^2 |gram(F_s) - gram(F_t)|^2)

No training is needed to rank architectures, so evolution can try many. The claim is that this rank follows the accuracy after
distillation, and better than what can be told without the teacher, such as the number of parameters.

Source: Dong, Li and Wei, "DisWOT: Student Architecture Search for Distillation WithOut Training", CVPR 2023, eq. 4 to 8. The
released search has the semantic term only, see `TeacherSimilarity`; the arms `semantic` and `relation` show each alone.
A unit: 24 random CNNs (a space of 2916) and their accuracies after a short distillation from one teacher, which all arms share;
`spearman` is of the arm's score with them. `found` is the accuracy of what evolution with the score finds among the networks of
at most 60,000 parameters, for 60 evaluations.
Run beside the authors' code on random features, both distances agree to float precision, the first one's gradient to 7e-7.
Deviations: MNIST in place of CIFAR-100; the space; one batch of 64 as in the paper. What came out: the number of parameters ranks
this space much better. The semantic term is about a thousand times the relation term, so the sum ranks as it does alone; the
relation term alone ranks better. Now and then a network without residuals fails to train in 8 epochs, whatever ranked it first.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from limbeck.beds.images import MNIST_FEW
from limbeck.experiments import Arm, Comparison, Miniature, Paper, Run
from limbeck.models import cnn
from limbeck.objectives import CrossEntropy, SoftTargets
from limbeck.search import TeacherSimilarity, evolve, rank_correlation
from limbeck.training.randomness import derived_seed

BED = replace(MNIST_FEW, name="mnist 14x14, 500 examples, 8 epochs", training=replace(MNIST_FEW.training, epochs=8))
CHOICES = {"width0": (4, 8, 16), "width1": (8, 16, 32), "kernel0": (1, 3, 5), "kernel1": (1, 3, 5), "kernel2": (1, 3, 5),
           "layers0": (1, 2), "layers1": (1, 2), "layers2": (1, 2, 3)}  # fmt: skip
LARGEST = 60_000
Genes = tuple[int, ...]  # one position in each of CHOICES


def sample(draws: torch.Generator) -> Genes:
    return tuple(int(torch.randint(len(values), (), generator=draws)) for values in CHOICES.values())


def mutate(genes: Genes, draws: torch.Generator) -> Genes:
    """Another value for one gene."""
    at = int(torch.randint(len(genes), (), generator=draws))
    count = len(list(CHOICES.values())[at])
    moved = (genes[at] + 1 + int(torch.randint(count - 1, (), generator=draws))) % count
    return (*genes[:at], moved, *genes[at + 1 :])


def network(genes: Genes, last: int, channels: int) -> torch.nn.Module:
    """The CNN of some genes; its last width is the teacher's, as the semantic term asks."""
    chosen = {name: values[gene] for (name, values), gene in zip(CHOICES.items(), genes)}
    of = lambda word: [chosen[f"{word}{stage}"] for stage in range(3)]  # noqa: E731
    widths = [chosen["width0"], chosen["width1"], last]
    return cnn(widths, kernels=of("kernel"), layers=of("layers"), channels=channels)


def accuracy(run: Run, genes: Genes, bed: Any) -> float:
    """Accuracy of these genes after distillation from the bed's teacher; computed once for all arms."""

    def measure() -> dict[str, torch.Tensor]:
        own = Run(run.seed, run.split, run.store)
        student = bed.new_student(own, lambda: network(genes, 4 * bed.teacher.width, bed.channels))
        found = bed.distil(own, CrossEntropy() + SoftTargets(4.0), student=student)
        return {"accuracy": torch.tensor(found["accuracy"], dtype=torch.float64)}

    key = {
        "paper": "diswot",
        "version": 1,
        "bed": bed.digest(),
        "genes": list(genes),
        "split": run.split,
        "seed": run.seed,
    }
    return float(run.tensors(key, measure)["accuracy"])


class Scores:
    """What an arm ranks by: name "diswot", "semantic", "relation", "parameters" or "random"."""

    def __init__(self, name: str, run: Run, bed: Any):
        self.name, self.bed, self.seed = name, bed, derived_seed(run.seed, "proxy") % 2**31
        self.teacher = bed.teacher.make(bed.channels)
        self.batch = next(iter(bed.task().batches("train", 64, seed=run.seed)))
        self.draws = run.generator("random scores")

    def __call__(self, genes: Genes) -> float:
        if self.name == "random":
            return float(torch.rand((), generator=self.draws))
        student = network(genes, 4 * self.bed.teacher.width, self.bed.channels)
        if self.name == "parameters":
            return float(parameters(student))
        terms = {"semantic": self.name != "relation", "relation": self.name != "semantic"}
        return TeacherSimilarity(**terms).score(student, self.teacher, self.batch, self.seed)


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def rank(run: Run, score: str, bed=BED, candidates: int = 24, evaluations: int = 60) -> dict[str, float]:
    """Rank the candidates by a score, compare with their accuracies, then search with it."""
    draws, scores = run.generator("candidates"), Scores(score, run, bed)
    space = [sample(draws) for _ in range(candidates)]
    reached = [accuracy(run, genes, bed) for genes in space]
    told = [scores(genes) for genes in space]

    def small(genes: Genes) -> bool:
        return parameters(network(genes, 4 * bed.teacher.width, bed.channels)) <= LARGEST

    population = min(20, evaluations)
    found = evolve(sample, mutate, scores, evaluations=evaluations, population=population, allowed=small, seed=run.seed)
    run.record(candidates=candidates, evaluations=evaluations)
    median = float(torch.tensor(reached, dtype=torch.float64).median())
    picked = reached[max(range(candidates), key=told.__getitem__)]
    best = accuracy(run, found.best, bed)
    return {"spearman": rank_correlation(told, reached), "found": best, "picked": picked, "median": median}


paper = Paper(
    id=19,
    title="DisWOT: Student Architecture Search for Distillation WithOut Training",
    claim="Similarity to the teacher at random weights ranks students by their accuracy after distillation, without training.",
    composition="TeacherSimilarity().score(student, teacher, batch), evolve(sample, mutate, score)",
    metric="spearman",
    method=Arm(rank, {"score": "diswot"}, about="semantic and relation similarity to the teacher"),
    baseline=Arm(rank, {"score": "parameters"}, about="more parameters are better"),
    control=Arm(rank, {"score": "random"}, about="random ranks"),
    others={
        "semantic": Arm(rank, {"score": "semantic"}, about="semantic term alone"),
        "relation": Arm(rank, {"score": "relation"}, about="relation term alone"),
    },
    comparisons=(
        Comparison(text="ranks better than the number of parameters"),
        Comparison(against="control", text="ranks better than chance"),
        Comparison("found", against="control", decisive=False, text="evolution finds a better student than chance"),
        Comparison("found", decisive=False, text="evolution finds a better student than with the number of parameters"),
    ),
    miniature=Miniature(beds=(BED,), seeds=5, equal=("candidates", "evaluations")),
    left_out="CIFAR-100, ImageNet, NAS-Bench-201 and its rival proxies; both terms as distillation losses; the speed-up.",
)
