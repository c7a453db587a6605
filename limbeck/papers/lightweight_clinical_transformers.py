"""Lightweight Clinical Transformers: a compact encoder for a special domain, by either of two routes from large general ones.

    L = 5 T^2 KL(t || s, T = 2) + 2 CE + 1 (1 - cos(W h_s, h_t)),   logits of masked tokens, last hidden states of all tokens

Idea: (a) make the large model special first and distil it on the domain's texts, or (b) distil the general one on general texts and go on
predicting masked tokens of the domain with the small one. Either way the student beats compact models that know general text only.
Source: Rohanian et al., "Lightweight Transformers for Clinical Natural Language Processing", 2023; the authors' public code was read
(DistilClinicalBERT): weights, temperature, and that logits count at masked tokens, hidden states at all that are no padding.
Pieces: `SoftTargets`, `CrossEntropy`, `Hint(loss="cosine")`, `TokenRelations(loss="maps")`, `MaskedLanguageModelling`.

Here: eight Romance languages stand for clinical notes, 24 other languages for general text, one vocabulary for all. Teacher: two
layers of width 64, trained on general text, and a second one that went on with the domain's. Students of one layer and half the
width, 400 steps each. Baseline: route (b) without its second half, that is general distillation only. Control: masked
tokens of the domain alone. Others: route (b), half of the steps on each text; route (a) with losses of the TinyBERT type (attention
maps, hidden states, soft targets at T = 1). Measured on the domain: the loss on masked tokens, and how well a ridge classifier
tells the eight languages from the frozen state that 400 labelled windows have (`probe`).
Deviations: the hidden states pass through a learned projection, since the student is narrower (the paper's keeps the width and begins with
every other layer of its teacher); 30 % of the tokens are masked. Every arm chooses its rate among two on the validation split; nothing
else was tried, and one run was made.
What came out: both routes are far better than general text only, and the student tells the languages apart about as well as its special
teacher (probe 0.46 of 0.47). The special teacher and no teacher tie: 1000 steps each on general and
special texts make a teacher that knows little more than its student learns by itself. Route (b) is behind masked tokens of the domain
alone, because at equal steps its general half is taken from the domain, whose texts are not scarce here; the paper's students came
distilled already and cost nothing.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from limbeck.beds.text import LANGUAGE_WINDOWS, TextBed
from limbeck.datasets.languages import LANGUAGES
from limbeck.experiments import Arm, Comparison, Miniature, Paper, Run
from limbeck.measure import linear_probe
from limbeck.models.encoder import MaskedLanguageModel
from limbeck.objectives import CrossEntropy, Hint, Objective, SoftTargets, TokenRelations
from limbeck.signals import capture

ROMANCE = ("ast", "cat", "fra", "glg", "ita", "por", "ron", "spa")
GENERAL = replace(
    LANGUAGE_WINDOWS, languages=tuple(code for code in LANGUAGES if code not in ROMANCE), width=64, pretraining=1000
)
DOMAIN = replace(GENERAL, languages=ROMANCE, labelled=400)
STEPS = 400


def objective(kind: str, student: int, teacher: int, heads: int) -> Objective:
    """The losses of the DistilBERT type ("distil") or of the TinyBERT type ("tiny") for models of so many layers."""
    if kind == "distil":
        hidden = Hint("encoder.norm", "encoder.norm", loss="cosine", projector="linear")
        return 5 * SoftTargets(temperature=2.0) + 2 * CrossEntropy() + hidden
    names = [
        tuple(f"encoder.blocks.{layers - 1}.attention.{part}" for part in ("query", "key"))
        for layers in (student, teacher)
    ]
    hidden = Hint(f"encoder.blocks.{student - 1}", f"encoder.blocks.{teacher - 1}")
    return TokenRelations(*names, heads=heads, loss="maps") + hidden + SoftTargets(temperature=1.0)


def special(run: Run, general: TextBed, domain: TextBed) -> MaskedLanguageModel:
    """The general teacher after as many steps on the domain's texts, from the store."""
    key = {"what": "masked tokens, then of a domain", "version": 1, "seed": 0, "domain": domain.task().digest()}
    key |= {"general": general.task().digest(), "settings": general.settings()}

    def train(model: MaskedLanguageModel) -> None:
        model.load_state_dict(general.pretrained_masked(run).state_dict())
        how = {"steps": domain.pretraining, "learning_rate": domain.pretraining_rate / 2}
        domain.fit_masked(run, model, seed=0, counted=False, **how)

    return run.trained(key, lambda: general.masked_model(general.encoder()), train)


def probe(run: Run, model: MaskedLanguageModel, bed: TextBed) -> float:
    """How well a linear classifier on the frozen mean of the last states tells the bed's classes apart."""

    def states(split: str, limit: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            found = [
                (capture(model.encoder, batch, {"head:input"})["head:input"], batch["labels"])
                for batch in bed.task().batches(split, 256, limit=limit)
            ]
        features, labels = zip(*found)
        return torch.cat(features), torch.cat(labels)

    return linear_probe(*states("train", bed.labelled), *states(run.split))


def student(
    run: Run,
    learning_rate: float,
    teacher: str | None = None,
    shares: tuple[float, float] = (0.0, 1.0),
    kind: str = "distil",
    general: TextBed = GENERAL,
    domain: TextBed = DOMAIN,
    steps: int = STEPS,
) -> dict[str, float]:
    """Shares of the steps on general texts, then on the domain's: distilled while there is a teacher for these texts ("general" or
    "domain"), on masked tokens otherwise."""
    model = run.fresh(lambda: general.masked_model(general.encoder(general.depth // 2, general.width // 2)))
    for text, bed, share in zip(("general", "domain"), (general, domain), shares):
        if share:
            how = {"steps": round(share * steps), "learning_rate": learning_rate}
            if teacher == text:
                loss = objective(kind, len(model.encoder.blocks), general.depth, general.heads)
                source = general.pretrained_masked(run) if text == "general" else special(run, general, domain)
                bed.fit_masked(run, model, loss, source, **how)
            else:
                bed.fit_masked(run, model, **how)
    run.record(parameters=sum(parameter.numel() for parameter in model.parameters()))
    teacher_probe = probe(run, special(run, general, domain), domain)
    return domain.measure_masked(run, model) | {"probe": probe(run, model, domain), "teacher_probe": teacher_probe}


def arm(about: str, **settings) -> Arm:
    return Arm(student, settings, {"learning_rate": (5e-3, 1e-2)}, about)


paper = Paper(
    id=122,
    title="Lightweight Transformers for Clinical Natural Language Processing",
    claim="A compact model distilled from a special teacher, or distilled in general and then trained on special texts, beats compact "
    "models of general text and one trained on special texts alone.",
    composition='5 * SoftTargets(2) + 2 * CrossEntropy() + Hint("encoder.norm", loss="cosine") on masked tokens of the domain',
    method=arm("a special teacher on special texts", teacher="domain"),
    baseline=arm("a general teacher on general texts", teacher="general", shares=(1.0, 0.0)),
    control=arm("masked tokens of special texts, no teacher"),
    others={
        "continued": arm("a general teacher, then masked special texts", teacher="general", shares=(0.5, 0.5)),
        "tiny": arm("a special teacher, losses of the TinyBERT type", teacher="domain", kind="tiny"),
    },
    comparisons=(
        Comparison(text="special teacher against general distillation"),
        Comparison(against="control", text="special teacher against none"),
        Comparison(method="continued", text="continued against general distillation"),
        Comparison(method="continued", against="control", text="continued against special texts alone"),
        Comparison("probe", better="higher", text="special teacher against general distillation, frozen features"),
        Comparison("probe", method="continued", better="higher", text="continued against general, frozen features"),
        Comparison("probe", against="control", better="higher", decisive=False, text="frozen features against none"),
        Comparison(method="tiny", against="control", decisive=False, text="TinyBERT type against no teacher"),
    ),
    miniature=Miniature(beds=(GENERAL, DOMAIN), seeds=3),
    metric="loss",
    better="lower",
    left_out="recursive students, students of the biomedical teacher, inference, relations and entities as tasks; `teacher_probe` is reported only.",
)
