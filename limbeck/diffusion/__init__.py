"""Diffusion: noise schedules, denoisers, samplers, and what makes sampling need fewer steps."""

from limbeck.diffusion.denoisers import Denoiser, Denoising, Guided, denoising_loss
from limbeck.diffusion.distribution_matching import DistributionMatching, discriminator_head, matching_direction
from limbeck.diffusion.metrics import frechet_distance, maximum_mean_discrepancy, mode_coverage
from limbeck.diffusion.mixtures import GaussianMixture, MixtureDenoiser, grid, ring
from limbeck.diffusion.samplers import generate, sample, sampler_step
from limbeck.diffusion.schedules import NoiseSchedule, from_clean, to_clean
from limbeck.diffusion.score_distillation import (
    ParticleDenoiser,
    Particles,
    ScoreDistillation,
    TimeWindow,
    distillation_direction,
)

__all__ = [
    "Denoiser",
    "Denoising",
    "DistributionMatching",
    "GaussianMixture",
    "Guided",
    "MixtureDenoiser",
    "NoiseSchedule",
    "ParticleDenoiser",
    "Particles",
    "ScoreDistillation",
    "TimeWindow",
    "denoising_loss",
    "discriminator_head",
    "distillation_direction",
    "frechet_distance",
    "from_clean",
    "generate",
    "grid",
    "matching_direction",
    "maximum_mean_discrepancy",
    "mode_coverage",
    "ring",
    "sample",
    "sampler_step",
    "to_clean",
]
