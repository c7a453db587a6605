"""Self-distillation for further pre-training: a pre-trained model reads the target's texts twice, the second time from the start and with a teacher.

    1. t = theta_0 after predicting masked tokens of the target's texts
    2. from theta_0 again:  L = L_masked(theta) + mean over examples |h_theta(x) - h_t(x)|^2,   x whole, h: what the head reads
    3. fine-tune on the labels

Idea: further pre-training overfits a small target set and moves the weights far. A fresh copy that is held to the further pre-trained
model's representation adapts as well and stays nearer to where it began; steps 1 and 2 may be repeated.
Source: Lee et al., "Self-Distillation for Further Pre-training of Transformers", ICLR 2023; the authors' public code was read: the squared
error is summed over the width of the class token's last normalized state on whole images, averaged over the batch, weight 1, and
both losses move the weights in one step, as here.
Pieces: `Joint`, `OnViews`, `unhidden`, `Hint("head:input", loss="half_squared_norm")` with weight 2, `parameter_distance`.

Here: theta_0 predicts masked tokens of 24 languages; the target is eight Romance languages, 1000 windows of 32 characters without
labels, and 80 labelled ones. Both stages take 150 steps (`method`). Baseline: further pre-training for as many steps in all, 300,
at a rate chosen among two like the method's. Control: fine-tuning theta_0. Others: further pre-training for 150 steps only, which
is the teacher itself. All arms fine-tune alike. `distance`: |theta - theta_0| of the encoder before fine-tuning.
Deviations: text in place of images (the paper has both), whose vector is the mean of the last normalized states, this encoder having no
class token. Nothing else was tuned or tried, and one run was made.
What came out: self-distillation beats fine-tuning alone, by 3.5 points, and is not told from its own teacher, nor from further pre-training
for as many steps, which is ahead by 2.9 on average. Here further pre-training does not overfit: 300 steps are better than 150 (0.54 to 0.50), so there is
nothing to regularize. The fresh copy ends nearer to the start than further pre-training of 300 steps and farther than its teacher of
150, whose rate is the same: two losses move it in place of one.
"""

from __future__ import annotations

import copy
from dataclasses import replace

from limbeck.beds.text import LANGUAGE_WINDOWS, TextBed
from limbeck.datasets.languages import LANGUAGES
from limbeck.experiments import Arm, Comparison, Miniature, Paper, Run
from limbeck.measure import parameter_distance
from limbeck.models.encoder import MaskedLanguageModel
from limbeck.objectives import Hint
from limbeck.tasks.masked import unhidden
from limbeck.training import Distil, Joint, OnViews, Procedure, Supervised

ROMANCE = ("ast", "cat", "fra", "glg", "ita", "por", "ron", "spa")
GENERAL = replace(
    LANGUAGE_WINDOWS, languages=tuple(code for code in LANGUAGES if code not in ROMANCE), depth=1, pretraining=1000
)
TARGET = replace(LANGUAGE_WINDOWS, languages=ROMANCE, depth=1, labelled=80)
STEPS, TUNING, TEXTS = 150, 60, 1000


def matched(model: MaskedLanguageModel, teacher: MaskedLanguageModel, bed: TextBed) -> Procedure:
    """Masked tokens, and the squared distance to the teacher's representation of whole texts."""
    distance = 2 * Hint("head:input", loss="half_squared_norm", projector="none")
    matching = OnViews(Distil(model.encoder, teacher.encoder, distance), unhidden)
    return Joint({"masked": Supervised(model, bed.masked()), "matching": matching})


def further(
    run: Run,
    rounds: int,
    learning_rate: float = 5e-3,
    matching: bool = False,
    general: TextBed = GENERAL,
    target: TextBed = TARGET,
    steps: int = STEPS,
    tuning: int = TUNING,
) -> dict[str, float]:
    """`rounds` times `steps` of further pre-training, the last of them from the start with the model so far as its teacher where
    `matching`; then fine-tune and measure."""
    begun = general.pretrained_masked(run, seed=run.seed)
    model, how = copy.deepcopy(begun), {"learning_rate": learning_rate, "limit": TEXTS}
    if matching:
        target.fit_masked(run, model, steps=(rounds - 1) * steps, **how)
        teacher, model = model, copy.deepcopy(begun)
        run.train(matched(model, teacher, target), target.masked(), target.config(steps, **how))
    elif rounds:
        target.fit_masked(run, model, steps=rounds * steps, **how)
    tuned = run.fresh(target.encoder)
    kept = {name: value for name, value in model.encoder.state_dict().items() if not name.startswith("head.")}
    tuned.load_state_dict(kept, strict=False)
    distance = parameter_distance(tuned.named_parameters(), _body(begun))
    run.record(parameters=sum(parameter.numel() for parameter in tuned.parameters()), tuning=tuning)
    target.fit(run, tuned, steps=tuning)
    return target.measure(run, tuned) | {"distance": distance}


def _body(model: MaskedLanguageModel):
    """The encoder's parameters without its head."""
    return [(name, value) for name, value in model.encoder.named_parameters() if not name.startswith("head.")]


RATES = {"learning_rate": (3e-3, 1e-2)}
paper = Paper(
    id=129,
    title="Self-Distillation for Further Pre-training of Transformers",
    claim="Further pre-training of a fresh copy that is held to a further pre-trained teacher beats further pre-training alone and "
    "none, and moves the weights less.",
    composition='Joint(masked tokens, OnViews(Distil(fresh copy, further pre-trained, 2 * Hint("head:input", "half_squared_norm")), unhidden))',
    method=Arm(further, {"rounds": 2, "matching": True}, RATES, "a fresh copy with a further pre-trained teacher"),
    baseline=Arm(further, {"rounds": 2}, RATES, "further pre-training for as many steps"),
    control=Arm(further, {"rounds": 0}, about="fine-tuning alone"),
    others={"teacher": Arm(further, {"rounds": 1}, RATES, "further pre-training for half of the steps")},
    comparisons=(
        Comparison(text="against further pre-training for as many steps"),
        Comparison(against="control", text="against fine-tuning alone"),
        Comparison(against="teacher", text="against its own teacher"),
        Comparison("distance", against="teacher", better="lower", text="stays nearer to the start than its teacher"),
        Comparison("distance", better="lower", decisive=False, text="nearer than further pre-training in all"),
        Comparison(method="teacher", against="control", decisive=False, text="further pre-training helps"),
    ),
    miniature=Miniature(
        beds=(GENERAL, TARGET),
        seeds=5,
        equal=("parameters", "tuning"),
        why_unequal="fine-tuning alone and the teacher leave out stages by definition; method and baseline take as many steps",
    ),
    metric="accuracy",
    left_out="vision transformers, regularized fine-tuning as a rival, more than one round of self-distillation.",
)
