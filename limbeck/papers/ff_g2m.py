"""FF-G2M: distil a graph network into a perceptron in two bands, so that low frequencies do not drown the high ones.

    L = w CE(labelled nodes) + (1 - w) (L_low + L_high)
    L_low  = mean over edges and self-loops of KL(softmax(h_j) || softmax(z_i))
    L_high = mean over edges of KL(softmax(|h_i - h_j| / T) || softmax(|z_i - z_j| / T))

h are the graph network's logits, z the perceptron's, which sees no edge: neither in training nor afterwards.
Source: Wu et al., "Extracting Low-/High-Frequency Knowledge from Graph Neural Networks and Injecting it into MLPs", AAAI 2023.
Run beside the authors' code on a random graph, both losses and their gradients agree to 2e-7.

Miniature: Cora and Citeseer with their public splits (20 labelled nodes per class), transductive as in the paper: the student
sees the features of all nodes and the teacher's logits for them; labels of validation and test nodes are never shown. The
teacher is a graph convolutional network of two layers. Baseline: GLNN, the same with the plain divergence at each node;
control: the perceptron with labels alone; `low`: without the high band. Width and steps are the same; method and baseline choose among the same settings.
`accuracy` is the mean of both graphs; `laplacian_error` the part of the teacher's high-pass filtered probabilities that the student's miss.
Deviations: a fixed schedule in place of early stopping, decoupled weight decay, T = 1.5 fixed.
"""

from __future__ import annotations

import torch

from limbeck.beds.graphs import Nodes
from limbeck.experiments import Arm, Comparison, Miniature, Paper
from limbeck.graphs import HighFrequency, LowFrequency, high_pass
from limbeck.objectives import CrossEntropy, SoftTargets
from limbeck.signals import call

BEDS = (
    Nodes("cora", expects={"accuracy": (0.79, 0.84)}),
    Nodes("citeseer", expects={"accuracy": (0.66, 0.74)}),
)
PLAIN = SoftTargets(temperature=1.0, positions="all")


def objective(bands: str, hard: float, temperature: float = 1.5):
    """What the student minimizes. bands: "both", "low", or "none" for the plain divergence of every node."""
    if bands == "none":
        soft = PLAIN
    else:
        soft = LowFrequency() + (1.0 if bands == "both" else 0.0) * HighFrequency(temperature)
    return hard * CrossEntropy() + (1 - hard) * soft


def measured(run, models) -> dict[str, float]:
    """Accuracy on each graph and its mean, and how much of the teacher's high frequencies is missing."""
    found, accuracies, errors = {}, [], []
    for bed, model in zip(BEDS, models):
        accuracies.append(bed.task.evaluate(lambda batch, m=model: call(m, batch), run.split)["accuracy"])
        batch, teacher = next(bed.task.batches(run.split, 1)), bed.teacher(run)
        with torch.no_grad():
            own, wanted = (high_pass(call(m, batch).softmax(-1), batch["edge_index"]) for m in (model, teacher))
        errors.append(float((own - wanted).square().sum() / wanted.square().sum()))
        found[f"accuracy_{bed.name}"] = accuracies[-1]
    count = len(accuracies)
    return {"accuracy": sum(accuracies) / count, "laplacian_error": sum(errors) / count, **found}


def distilled(run, bands: str, hard: float, dropout: float):
    return measured(run, [bed.distil(run, objective(bands, hard), dropout) for bed in BEDS])


def labels_only(run, dropout: float):
    return measured(run, [bed.distil(run, CrossEntropy(), dropout, teacher=False) for bed in BEDS])


def graph_network(run):
    """The teachers themselves; their steps are counted as this arm's."""
    steps = sum(bed.steps for bed in BEDS)
    run.record(steps=steps, samples=steps)
    return measured(run, [bed.teacher(run) for bed in BEDS])


TUNED = {"hard": (0.1, 0.5), "dropout": (0.2, 0.5)}

paper = Paper(
    id=97,
    title="Extracting Low-/High- Frequency Knowledge from Graph Neural Networks and Injecting it into MLPs: An Effective GNN-to-MLP "
    "Distillation Framework",
    claim="A perceptron distilled in both bands is far better than a plain one and than its graph network's plain distillation.",
    composition="CrossEntropy + LowFrequency + HighFrequency over edges, Distil, node_perceptron",
    method=Arm(distilled, {"bands": "both"}, TUNED, about="both bands"),
    baseline=Arm(distilled, {"bands": "none"}, TUNED, about="GLNN: plain divergence at each node"),
    control=Arm(labels_only, tune={"dropout": (0.2, 0.5)}, about="labels alone"),
    others={
        "low": Arm(distilled, {"bands": "low", "hard": 0.1, "dropout": 0.5}, about="low band only"),
        "teacher": Arm(graph_network, about="the graph network"),
    },
    comparisons=(
        Comparison(against="control", text="better than a perceptron trained on labels"),
        Comparison(text="better than plain distillation of every node"),
        Comparison(against="teacher", decisive=False, text="better than the graph network"),
        Comparison(against="low", decisive=False, text="the high band adds accuracy"),
        Comparison(
            "laplacian_error",
            against="low",
            better="lower",
            decisive=False,
            text="the high band keeps high frequencies",
        ),
    ),
    miniature=Miniature(beds=BEDS, seeds=5),
    metric="accuracy",
    left_out="the other four graphs, GraphSAGE and GAT as teachers, and the inductive setting",
)
