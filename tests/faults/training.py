"""Faults in training and teachers."""

FAULTS = [
    (
        "past predictions written before they are read",
        "training/procedures.py",
        """            teacher = self._teacher_signals(batch)
        with Tap(self.student, self.objective.reads.student) as tap:
            student = tap(batch)
        observe = getattr(self.teacher, "observe", None)
        if observe is not None:
            observe(batch, student.detach())
""",
        """            pass
        with Tap(self.student, self.objective.reads.student) as tap:
            student = tap(batch)
        observe = getattr(self.teacher, "observe", None)
        if observe is not None:
            observe(batch, student.detach())
        teacher = self._teacher_signals(batch)
""",
        "tests/training/test_training_past.py",
    ),
    (
        "what was seen is not in checkpoints",
        "teachers/past.py",
        'return {"table": self.table}',
        "return {}",
        "tests/training/test_training_past.py",
    ),
    (
        "online: one peer learns into the other",
        "training/online.py",
        "signals[own], signals[other].detach(), batch",
        "signals[other], signals[own].detach(), batch",
        "tests/training/test_training_online.py",
    ),
    (
        "online: summed over the peers",
        "training/online.py",
        "sum(loss.value for loss in losses) / len(losses)",
        "sum(loss.value for loss in losses)",
        "tests/training/test_training_online.py",
    ),
    (
        "moving average the wrong way",
        "teachers/averaged.py",
        "value.lerp_(target.to(value.dtype), 1 - decay)",
        "value.lerp_(target.to(value.dtype), decay)",
        "tests/teachers",
    ),
    (
        "ensemble averages logits",
        "teachers/ensemble.py",
        "log_probabilities(answer) + math.log(weight)",
        "answer + math.log(weight)",
        "tests/teachers",
    ),
    (
        "tail mass not spread",
        "teachers/compact.py",
        "- math.log(count - top_k)",
        "",
        "tests/teachers",
    ),
    (
        "cosine schedule upside down",
        "training/schedules.py",
        "0.5 * (1 + math.cos",
        "0.5 * (1 - math.cos",
        "tests/training/test_training_schedules.py",
    ),
    (
        "mixup labels swapped",
        "training/mixing.py",
        "    return weight * images + (1 - weight) * images[order], weight * labels + (1 - weight) * labels[order]",
        "    return weight * images + (1 - weight) * images[order], weight * labels[order] + (1 - weight) * labels",
        "tests/training/test_training_mixing.py",
    ),
    (
        "cutmix labels by the drawn area",
        "training/mixing.py",
        "kept = 1 - (bottom - top) * (right - left) / (height * width)",
        "kept = weight",
        "tests/training/test_training_mixing.py",
    ),
    (
        "accumulated pieces not weighted",
        "training/update.py",
        "value = loss.value if share == 1.0 else loss.value * share",
        "value = loss.value",
        "tests/training/test_training_trainer.py",
    ),
    (
        "class means: not divided by the class",
        "teachers/class_means.py",
        "count += torch.bincount(labels.cpu(), minlength=len(count))",
        "count += len(labels)",
        "tests/teachers/test_class_means.py",
    ),
    (
        "masked images: the shown patches are judged",
        "training/masked_images.py",
        "torch.ones_like(squared).scatter(1, shown, 0.0)",
        "torch.zeros_like(squared).scatter(1, shown, 1.0)",
        "tests/training/test_training_masked_images.py",
    ),
    (
        "masked images: shown patches one place off",
        "training/masked_images.py",
        "torch.arange(1, shown.shape[1] + 1,",
        "torch.arange(shown.shape[1],",
        "tests/training/test_training_masked_images.py",
    ),
    (
        "communication: the second round repeats the first",
        "training/communication.py",
        "spoken = answer",
        "spoken = ours[0]",
        "tests/training/test_training_communication.py",
    ),
    (
        "constrained: projected the wrong way",
        "training/constraints.py",
        "weight.clamp(min=0)",
        "weight.clamp(max=0)",
        "tests/training/test_training_constraints.py",
    ),
    (
        "interpolation: nobody tells the share of a step",
        "training/procedures.py",
        "            connector.after_step(state)",
        "            pass",
        "tests/objectives/test_interpolation.py",
    ),
    (
        "partial mixup: nobody is left alone",
        "training/mixing.py",
        "torch.where(mixed, drawn, torch.ones_like(drawn))",
        "drawn",
        "tests/training/test_training_mixing.py",
    ),
    (
        "subclasses: directions keep their own scale",
        "teachers/subclasses.py",
        " / deviation @ turn",
        " @ turn",
        "tests/teachers/test_subclasses.py",
    ),
    (
        "subclasses: the class's own probability is lost",
        "teachers/subclasses.py",
        "(classes.unsqueeze(-1) + log_prob",
        "(0 * classes.unsqueeze(-1) + log_prob",
        "tests/teachers/test_subclasses.py",
    ),
    (
        "rate controller: sign",
        "training/rates.py",
        "error = self.target - rate",
        "error = rate - self.target",
        "tests/training/test_training_rates.py",
    ),
    (
        "rate controller: never below zero",
        "training/rates.py",
        "clamp_min(self.least)",
        "clamp_min(0)",
        "tests/training/test_training_rates.py",
    ),
    (
        "balance: forces upside down",
        "training/balance.py",
        "ratio = first / torch.where(known, running, first)",
        "ratio = torch.where(known, running, first) / first",
        "tests/training/test_training_balance.py",
    ),
    (
        "balance: the variance is free",
        "training/balance.py",
        "return super().total(values, weights, factors) - sum(w * f.log() for w, f in zip(weights, factors))",
        "return super().total(values, weights, factors)",
        "tests/training/test_training_balance.py",
    ),
    (
        "balance: the weights are left out",
        "training/balance.py",
        "sum(w * f * v.to",
        "sum(f * v.to",
        "tests/training/test_training_balance.py",
    ),
    (
        "balance: not in checkpoints",
        "training/procedures.py",
        'self.modules["balance"] = self.weigher',
        "pass",
        "tests/training/test_training_balance.py",
    ),
    (
        "scales: the pull without the weights",
        "training/probe.py",
        'pull = abs(row["weight"]) * row["factor"]',
        'pull = row["factor"]',
        "tests/training/test_training_probe.py",
    ),
    (
        "similarity: distances of labels not ranked",
        "teachers/selection.py",
        "return (last - (counts.double() + 1) / 2)[place]",
        "return last[place]",
        "tests/teachers/test_teacher_selection.py",
    ),
    (
        "two views: the strong view teaches",
        "training/views.py",
        "held = self.consistency(hard, weak.detach(), batch)",
        "held = self.consistency(weak, hard.detach(), batch)",
        "tests/training/test_training_views.py",
    ),
    (
        "closed soft targets: temperature of the gradient",
        "objectives/logits/slopes.py",
        "mul_(temperature * weights.unsqueeze(-1))",
        "mul_(temperature**2 * weights.unsqueeze(-1))",
        "tests/objectives/test_large_vocabulary.py",
    ),
    (
        "retokenized: first token of a character instead of the last",
        "teachers/retokenized.py",
        "last = {end: place for place, end in enumerate(student) if end is not None}",
        "last = {end: place for place, end in reversed(list(enumerate(student))) if end is not None}",
        "tests/teachers/test_retokenized_teacher.py",
    ),
    (
        "retokenized: one position early",
        "teachers/retokenized.py",
        "logits[rows, at.clamp_min(0)]",
        "logits[rows, (at - 1).clamp_min(0)]",
        "tests/teachers/test_retokenized_teacher.py",
    ),
    (
        "sharpness: downhill",
        "training/sharpness.py",
        "p + scale * slope for (name",
        "p - scale * slope for (name",
        "tests/training/test_training_sharpness.py",
    ),
    (
        "meta: first order",
        "training/meta.py",
        "inner, self.rate, higher=True)",
        "inner, self.rate, higher=False)",
        "tests/training/test_training_meta.py",
    ),
    (
        "joint: weights are not used",
        "training/joint.py",
        "self.weights.get(name, 1.0) * loss.value",
        "loss.value",
        "tests/training/test_training_joint.py",
    ),
    (
        "joint: a shared module counts twice",
        "training/joint.py",
        " if id(module) not in known",
        "",
        "tests/training/test_training_joint.py",
    ),
]
