"""Pseudo-inputs: what a student learns from when the data that its teacher was trained on must stay where they are.

    noise     nothing is known of the data but their scale             torch.randn
    Gaussians mean and main directions of each class                   ClassGaussians
    perturbed every input, drowned in noise before it is handed over   perturbed

They carry no labels: a teacher answers them, and objectives with positions="all" learn what it says.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.errors import UsageError


def perturbed(
    inputs: Tensor, noise: float, generator: torch.Generator | None = None, count: int | None = None
) -> Tensor:
    """x~ = x + noise s e,   e ~ N(0, I), s: the deviation of all numbers in `inputs`, so that noise 1 is as strong as what it covers.

    inputs (N, ...), any layout of float numbers, embeddings too; count: of pseudo-inputs, None: one for each input, else input after
    input, from the first again where there are too few, each time with other noise. Returns (count, ...). It hides details, not the
    whole: averaged over many draws for one input the noise is gone, so hand each draw over once.
    Source: Wang and Jiang, "Knowledge Migration Framework for Smart Contract Vulnerability Detection", 2024 (AF-STip), which distils from
    inputs with Gaussian noise; its size could not be read. Raises UsageError for what is no float tensor, or a noise below 0.
    """
    if not inputs.is_floating_point() or inputs.dim() < 2 or not len(inputs):
        raise UsageError(
            f"perturbed: inputs of the shape {tuple(inputs.shape)} ({inputs.dtype}) must be float (N, ...)"
        )
    if not 0 <= noise < float("inf"):
        raise UsageError(f"perturbed: noise={noise!r} must be a finite number of at least 0")
    at = torch.arange(_count("perturbed", len(inputs) if count is None else count)) % len(inputs)
    scale = noise * float(inputs.double().std(correction=0))
    chosen = inputs[at]
    return chosen + scale * _normal(chosen.shape, chosen, generator)


@dataclass(frozen=True, eq=False)
class ClassGaussians:
    """Each class as a normal distribution of low rank: x~ = mean_c + noise axes_c e,   e ~ N(0, I).

    means (C, ...), axes (C, R, ...): R principal directions, each as long as the deviation along it. They are all that leaves the data's
    place: no single input does. `ClassGaussians.of(inputs, labels, directions)` measures them.
    """

    means: Tensor
    axes: Tensor

    def __post_init__(self) -> None:
        if self.means.dim() < 2 or self.axes.shape[:1] + self.axes.shape[2:] != self.means.shape:
            raise UsageError(
                f"ClassGaussians: means {tuple(self.means.shape)} and axes {tuple(self.axes.shape)} must be (C, ...) and (C, R, ...)"
            )

    @staticmethod
    def of(inputs: Tensor, labels: Tensor, directions: int) -> ClassGaussians:
        """Of inputs (N, ...) and labels (N,), classes 0 to C - 1 with more than `directions` examples each (0: means alone).

        Raises UsageError for fewer.
        """
        if (
            labels.shape != inputs.shape[:1]
            or not inputs.is_floating_point()
            or isinstance(directions, bool)
            or not isinstance(directions, int)
            or directions < 0
        ):
            raise UsageError(
                f"ClassGaussians: inputs {tuple(inputs.shape)} ({inputs.dtype}), labels {tuple(labels.shape)}, directions={directions!r} "
                "must be float (N, ...), (N,) and a whole number of at least 0"
            )
        means, axes = [], []
        for label in range(int(labels.max()) + 1):
            own = inputs[labels == label].flatten(1).double()
            if len(own) <= directions or own.shape[1] < directions:
                raise UsageError(
                    f"ClassGaussians: class {label} has {len(own)} examples of {own.shape[1] if len(own) else 0} numbers; "
                    f"directions={directions} needs more"
                )
            mean = own.mean(0)
            _, size, rows = torch.linalg.svd(own - mean, full_matrices=False)
            means.append(mean)
            axes.append(rows[:directions] * (size[:directions] / max(len(own) - 1, 1) ** 0.5)[:, None])
        shape = inputs.shape[1:]
        return ClassGaussians(
            torch.stack(means).reshape(-1, *shape).to(inputs.dtype),
            torch.stack(axes).reshape(len(axes), directions, *shape).to(inputs.dtype),
        )

    def draw(self, count: int, noise: float = 1.0, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Pseudo-inputs (count, ...), class after class in turn, and their classes (count,)."""
        classes = torch.arange(_count("ClassGaussians.draw", count)) % len(self.means)
        e = _normal((count, self.axes.shape[1]), self.axes, generator)
        moved = torch.einsum("nr,nrd->nd", e, self.axes.flatten(2)[classes])
        return self.means[classes] + noise * moved.reshape(count, *self.means.shape[1:]), classes


def _normal(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draws of N(0, 1) made on the CPU, so that a seed gives the same ones for every device."""
    return torch.randn(shape, generator=generator).to(like)


def _count(owner: str, count: int) -> int:
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise UsageError(f"{owner}: count={count!r} must be a whole number of at least 1")
    return count
