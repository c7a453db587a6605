"""Talking models: student and teacher exchange messages, so that the teacher answers what the student made of the input.

    student h_s -> E_s -> message -> D_t -> upper layers of the teacher -> E_t -> answer -> D_s  ~  upper state of the student

Idea: a pre-trained teacher knows nothing of the downstream task, and its states are too rich for a small student. Here the student
says what it saw, the teacher reasons on that with its own upper layers, and answers in messages that the student can decode.
Loss: the task, the interaction, and two consistencies that keep the messages of both meaningful (see `limbeck.training.Communication`).
Source: Zhao et al., "Talking Models: Distill Pre-trained Knowledge to Downstream Models via Interactive Communication", 2023.
Read: the abstract; that there are three terms and N rounds is second-hand, the equations were not to be had and no code was found. So the
distance (squared error), the shapes of encoders and decoders, and what a second round speaks about are ours.

The teacher was trained on the topics of all 6,080 texts of AG News; a student of half its depth and width learns them from 600
labels. Baseline: a hint, the teacher's last layer through a projector. Control: labels only. Others: soft targets of the teacher's
logits; the one-way limit, in which the teacher reads the input instead of the message (a hint through encoder and decoder); and
two rounds. Each chooses its weight among three on the validation split.
Left out: recommenders and images, a teacher of another task.
"""

from __future__ import annotations

from limbeck.beds.text import TextBed
from limbeck.experiments import Arm, Comparison, Miniature, Paper, Run
from limbeck.objectives import CrossEntropy, Hint, SoftTargets
from limbeck.training import Communication

BED = TextBed("ag_news", steps=500, learning_rate=2e-3)
LABELLED, STEPS = 600, 200


def talked(
    run: Run, weight: float, reads: str = "message", rounds: int = 1, bed: TextBed = BED, steps: int = STEPS
) -> dict[str, float]:
    """A student that talks with the teacher while it learns from labels. weight: of all three further terms."""
    teacher, student = bed.teacher(run), bed.encoder(bed.depth // 2, bed.width // 2)
    depths = len(student.blocks), len(teacher.blocks)
    talking = Communication(
        student,
        teacher,
        CrossEntropy(),
        *((f"blocks.{depth // 2 - 1}", f"blocks.{depth - 1}") for depth in depths),
        message=bed.width // 2,
        rounds=rounds,
        interaction=weight,
        message_consistency=weight,
        state_consistency=weight,
        reads=reads,
    )
    run.train(talking, bed.task(), bed.config(steps, limit=LABELLED))
    return bed.measure(run, student.eval())


def distilled(run: Run, weight: float, kind: str = "hint", bed: TextBed = BED, steps: int = STEPS) -> dict[str, float]:
    """A student that learns from labels and imitates the teacher's last layer or its logits; weight 0: labels only."""
    teacher, student = bed.teacher(run), bed.encoder(bed.depth // 2, bed.width // 2)
    hint = Hint(f"blocks.{len(student.blocks) - 1}", f"blocks.{len(teacher.blocks) - 1}")
    loss = CrossEntropy() + weight * (hint if kind == "hint" else SoftTargets(temperature=2.0))
    return bed.measure(run, bed.fit(run, student, loss, teacher, steps=steps, limit=LABELLED))


WEIGHTS = {"weight": (0.01, 0.1, 1.0)}
paper = Paper(
    id=6,
    title="Talking Models: Distill Pre-trained Knowledge to Downstream Models via Interactive Communication",
    claim="Interactive communication with a pre-trained teacher beats distillation of its features and of its logits",
    composition="Communication(student, teacher, CrossEntropy(), (low, high), (low, high))",
    method=Arm(talked, {}, WEIGHTS, "the teacher answers messages"),
    baseline=Arm(distilled, {}, WEIGHTS, "hint: last layer through a projector"),
    control=Arm(distilled, {"weight": 0.0}, {}, "labels only"),
    others={
        "logits": Arm(distilled, {"kind": "logits"}, WEIGHTS, "soft targets"),
        "one_way": Arm(talked, {"reads": "input"}, WEIGHTS, "the teacher reads the input"),
        "two_rounds": Arm(talked, {"rounds": 2}, WEIGHTS, "two rounds"),
    },
    miniature=Miniature(beds=(BED,), seeds=3),
    metric="accuracy",
    comparisons=(
        Comparison(text="better than a hint"),
        Comparison(against="control", text="better than labels only"),
        Comparison(against="logits", text="better than soft targets"),
        Comparison(against="one_way", decisive=False, text="the student's message helps"),
        Comparison(method="two_rounds", against="method", decisive=False, text="a second round helps"),
    ),
    left_out="recommenders, images, a teacher of another task",
)
