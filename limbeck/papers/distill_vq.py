"""Distill-VQ: an index of inverted lists and product codes learns to reproduce the scores of the dense vectors.

    L = -sum_d softmax(<q, d> / T) log softmax(<R q, c(d) + PQ(R d - c(d))> / T)  +  w the same with <R q, c(d)>

over the documents d that a batch's queries bring along: their own, near ones and random ones. Codes are chosen straight-through; the
vectors, the rotation R and the lists stay as they are. w makes both terms equal at the start. No judged query is needed.
Source: Xiao et al., "Distill-VQ: Learning Retrieval Oriented Vector Quantization By Distilling Knowledge from Dense Embeddings",
SIGIR 2022. The authors' code agrees; it adds 1e-6 inside the logarithm, which we do not.
Run beside the authors' code on random vectors, the straight-through codes and their gradient are equal.

Miniature: Cranfield's documents as unit vectors of a small sentence encoder, 16 lists, 16 codes of 4 bits: 8.5 bytes in place of 1,536.
Trained with sentences of the documents as queries, measured with Cranfield's own: the share of the exact ten best documents among the ten
that the index finds in 6 of its 16 lists. Baseline: optimized product quantization (k-means and rotation), from which method
and control start; control: the same training with the contrastive loss, a query's own document as the right one; `pq`: no rotation.
Deviations: unit vectors make scores lie in -1..1, so T is a setting; it divides the distances of the code choice too, which is the paper's
T = 1 on vectors 1 / sqrt(T) times as long. Learning rates are chosen for few steps.
Second attempt: a first run (inconclusive against the baseline, with rates of 3e-4 and 1e-3) left the distances undivided, so that the choice of
codes was nearly flat and its gradient pulled all codes of a part alike, and every chosen rate was the smallest of its grid. The seeds, the
data and the baseline stayed the same. What came out: again a tie with optimized product quantization and with the contrastive loss, all ten
points above k-means without rotation, at nearly twice the distortion of the baseline.
"""

from __future__ import annotations

import torch

from limbeck.beds.retrieval import Embedded
from limbeck.experiments import Arm, Comparison, Miniature, Paper
from limbeck.objectives import CrossEntropy, SoftTargets
from limbeck.retrieval import DistilIndex, QuantizedIndex
from limbeck.tasks import CustomTask
from limbeck.training import TrainingConfig

BED = Embedded("cranfield")
LISTS, PARTS, CODES, PROBE = 16, 16, 16, 6


def built(run, rounds: int, iterations: int) -> tuple[QuantizedIndex, torch.Tensor]:
    """An index that minimizes the distortion, and the documents."""
    documents = BED.vectors(run)["documents"]
    generator = BED.generator(run)
    return QuantizedIndex.fit(documents, LISTS, PARTS, CODES, rounds, iterations, generator), documents


def measured(run, index: QuantizedIndex) -> dict[str, float]:
    queries, documents = BED.vectors(run)[run.split], BED.vectors(run)["documents"]
    run.record(bytes=index.bytes_per_document * len(documents))
    rotated = index.codes.long()
    quantized = torch.cat([book[rotated[:, part]] for part, book in enumerate(index.codebooks.detach())], 1)
    error = documents @ index.rotation - index.centroids.detach()[index.lists.long()] - quantized
    return {
        "recall@10": BED.recall(run, index.search(queries, 10, PROBE)),
        "recall@10_all_lists": BED.recall(run, index.search(queries, 10)),
        "distortion": float(error.square().sum(-1).mean()),
    }


def distortion(run, rounds: int, iterations: int):
    return measured(run, built(run, rounds, iterations)[0])


def learned(run, objective: str, temperature: float, rate: float, steps: int = 300):
    index, documents = built(run, 25, 25)
    vectors = BED.vectors(run)
    loss = SoftTargets(1.0) if objective == "scores" else CrossEntropy()
    procedure = DistilIndex(index, documents, loss, temperature=temperature)
    rows = {"queries": vectors["train"], "own": vectors["train.own"], "labels": vectors["train.own"]}
    task = CustomTask({"train": rows, "test": rows}, inputs=("queries", "own"), version=BED.digest())
    run.train(procedure, task, TrainingConfig(steps=steps, batch_size=32, learning_rate=rate))
    return measured(run, index)


TUNED = {"temperature": (0.02, 0.1), "rate": (3e-5, 1e-4, 3e-4)}

paper = Paper(
    id=290,
    title="Distill-VQ: Learning Retrieval Oriented Vector Quantization By Distilling Knowledge from Dense Embeddings",
    claim="At equal bytes, an index distilled from dense scores keeps more of the exact ranking than one fitted to the vectors or learned contrastively.",
    composition="QuantizedIndex + DistilIndex + SoftTargets over candidate documents",
    method=Arm(learned, {"objective": "scores"}, TUNED, about="listwise distillation of scores"),
    baseline=Arm(
        distortion, tune={"rounds": (10, 25, 50), "iterations": (10, 25)}, about="optimized product quantization"
    ),
    control=Arm(learned, {"objective": "labels"}, TUNED, about="contrastive: a query's own document"),
    others={"pq": Arm(distortion, {"rounds": 0, "iterations": 25}, about="k-means without rotation")},
    comparisons=(
        Comparison(text="better than optimized product quantization"),
        Comparison(against="control", text="better than the contrastive loss"),
        Comparison(against="pq", decisive=False),
        Comparison("recall@10_all_lists", decisive=False, text="the codes alone, without lists"),
        Comparison("distortion", better="lower", decisive=False, text="distortion is not what matters"),
    ),
    miniature=Miniature(
        beds=(BED,), seeds=5, equal=("bytes",), why_unequal="an index fitted by k-means takes no training steps"
    ),
    metric="recall@10",
    left_out="joint training of the query encoder, judged queries, and the comparison of other losses on scores",
)
