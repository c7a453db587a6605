"""Faults in teacher intervention, binary layers, spiking neurons and direction matching."""

INTERVENTION = "tests/training/test_training_intervention.py"
BINARY = "tests/models/test_models_binary.py"
DIRECTION = "tests/objectives/test_direction_matching.py"
SPIKING = "tests/models/test_models_spiking.py"

FAULTS = [
    (
        "intervention: gradients pass into the layers below",
        "training/intervention.py",
        "detached(self.student, phase.detached)",
        "detached(self.student, ())",
        INTERVENTION,
    ),
    (
        "intervention: the objective sees the teacher's signal",
        "training/intervention.py",
        """            Tap(self.student, self.objective.reads.student) as tap,
            injected(self.student, values),
""",
        """            injected(self.student, values),
            Tap(self.student, self.objective.reads.student) as tap,
""",
        INTERVENTION,
    ),
    (
        "intervention: a phase is a step too long",
        "training/intervention.py",
        "state.step < phase.until * state.steps",
        "state.step <= phase.until * state.steps",
        INTERVENTION,
    ),
    (
        "intervention: values pass gradients on under attention outputs",
        "training/intervention.py",
        'Intervention(share / 6, (f"{attention}.output",), inputs)',
        'Intervention(share / 6, (f"{attention}.output",), inputs[:2])',
        INTERVENTION,
    ),
    (
        "binary: the mean of a row stays",
        "models/binary.py",
        "centred = weight - weight.mean(1, keepdim=True)",
        "centred = weight",
        BINARY,
    ),
    (
        "binary: the scale of the centred row",
        "models/binary.py",
        "scale = weight.abs().mean(1, keepdim=True)",
        "scale = centred.abs().mean(1, keepdim=True)",
        BINARY,
    ),
    ("binary: gradients are not clipped", "models/binary.py", "x.abs() < 1", "x.abs() < 100", BINARY),
    ("binary: zero is negative", "models/binary.py", "(x >= 0).to(x.dtype)", "(x > 0).to(x.dtype)", BINARY),
    (
        "direction: the square of the distance",
        "objectives/divergences.py",
        "return norm(directions(x.flatten()), directions(y.flatten()))",
        "return norm(directions(x.flatten()), directions(y.flatten())) ** 2",
        DIRECTION,
    ),
    (
        "direction: weights without their root",
        "objectives/divergences.py",
        "(x.dim() - weights.dim())).sqrt()",
        "(x.dim() - weights.dim()))",
        DIRECTION,
    ),
    (
        "spiking: a fired neuron keeps its potential",
        "models/spiking.py",
        "held = self.leak * potential * (1 - spike)",
        "held = self.leak * potential",
        SPIKING,
    ),
    (
        "spiking: levels are cut off, not rounded",
        "models/spiking.py",
        "torch.floor(scaled.clamp(0, steps) + 0.5) / steps",
        "torch.floor(scaled.clamp(0, steps)) / steps",
        SPIKING,
    ),
    (
        "spiking: gradients pass where the neuron is full",
        "models/spiking.py",
        "(scaled > 0) & (scaled < steps)",
        "scaled > 0",
        SPIKING,
    ),
    (
        "spiking: keys before queries",
        "models/spiking.py",
        "SCALE * (query @ (key.transpose(-1, -2) @ value))",
        "SCALE * (key @ (query.transpose(-1, -2) @ value))",
        SPIKING,
    ),
]
