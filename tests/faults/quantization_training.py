"""Faults in what is trained for few bits: generated images, scales learned with roundings, precision that follows training."""

IMAGES = "tests/datasets/test_generated_images.py"
JOINT = "tests/quantization/test_joint_reconstruction.py"
POINT = "tests/quantization/test_fixed_point.py"
ADAPT = "tests/quantization/test_adaptive_precision.py"
LOGITS = "tests/objectives/test_objective_distributions.py"

RANGES = "tests/quantization/test_range_levels.py"

FAULTS = [
    (
        "range levels: no low end",
        "quantization/range_levels.py",
        "return low + span * packed",
        "return span * packed",
        RANGES,
    ),
    (
        "range levels: codes of the sorted levels",
        "quantization/range_levels.py",
        "codes = order[torch.bucketize(scaled.contiguous(), (rising[1:] + rising[:-1]) / 2)].to",
        "codes = torch.bucketize(scaled.contiguous(), (rising[1:] + rising[:-1]) / 2).to",
        RANGES,
    ),
    (
        "top k: the rest in the head's direction",
        "objectives/logits/distributions.py",
        "torch.where(chosen, made[self.head], self.weight * made[self.rest])",
        "torch.where(chosen, made[self.head], self.weight * made[self.head])",
        LOGITS,
    ),
    (
        "top k: the linear terms dropped",
        "objectives/logits/distributions.py",
        "(log_p.clamp(min=least) - log_q.clamp(min=least)) - p + log_q.exp()",
        "(log_p.clamp(min=least) - log_q.clamp(min=least))",
        LOGITS,
    ),
    (
        "top k: the student's likeliest classes",
        "objectives/logits/distributions.py",
        "log_p.topk(self.k, dim=-1).indices",
        "log_q.topk(self.k, dim=-1).indices",
        LOGITS,
    ),
    (
        "generated images: latents at the generator's rate",
        "datasets/generated_images.py",
        "self.linear(self.latent_rate * self.latents)",
        "self.linear(self.latents)",
        IMAGES,
    ),
    (
        "generated images: zeros in place of reflected pixels",
        "datasets/generated_images.py",
        '(reach,) * 4, mode="reflect")',
        "(reach,) * 4)",
        IMAGES,
    ),
    (
        "generated images: convolutions without stride swing",
        "datasets/generated_images.py",
        "max(m.stride) > 1",
        "max(m.stride) > 0",
        IMAGES,
    ),
    (
        "generated images: batch statistics of the input",
        "datasets/batch_norm_images.py",
        "images.new_ones(()), bool(self.per_image))",
        "images.new_ones(()), self.per_image is True)",
        IMAGES,
    ),
    (
        "joint reconstruction: the choices made anew for the trained scales",
        "quantization/adaptive_rounding.py",
        "else choice.form.pack(choice.form.nearest(weights[path]))",
        "else placed(path, scales[path]).pack(choice.form.nearest(weights[path]))",
        JOINT,
    ),
    (
        "joint reconstruction: scales stored as they began",
        "quantization/adaptive_rounding.py",
        "placed(path, scales[path]).pack(choice.codes())",
        "choice.form.pack(choice.codes())",
        JOINT,
    ),
    (
        "fixed point: no most negative number",
        "quantization/fixed_point.py",
        "codes.clamp(-(2.0 ** (word - 1)), 2.0",
        "codes.clamp(1 - (2.0 ** (word - 1)), 2.0",
        POINT,
    ),
    (
        "fixed point: noise around the nearest",
        "quantization/fixed_point.py",
        "torch.floor(ratio + noise)",
        "torch.round(ratio + noise)",
        POINT,
    ),
    (
        "fixed point: scales a power too small",
        "quantization/fixed_point.py",
        "torch.exp2(torch.ceil(torch.log2(reach.clamp(min=1e-300))))",
        "torch.exp2(torch.floor(torch.log2(reach.clamp(min=1e-300))))",
        POINT,
    ),
    (
        "adaptive precision: bisection to the other side",
        "quantization/adaptive_precision.py",
        "            high = middle\n",
        "            high = middle - 1\n",
        ADAPT,
    ),
    (
        "adaptive precision: the divergence turned round",
        "quantization/adaptive_precision.py",
        "(p * (p / q).log()).sum()",
        "(q * (q / p).log()).sum()",
        ADAPT,
    ),
    (
        "adaptive precision: windows run on",
        "quantization/adaptive_precision.py",
        "        self.squares.zero_()\n",
        "",
        ADAPT,
    ),
    (
        "adaptive precision: evaluation with noise",
        "quantization/adaptive_precision.py",
        "if self.training and self.stochastic else None",
        "if self.stochastic else None",
        ADAPT,
    ),
]
