"""Distributions of noise, each with the radius that it certifies."""

from certbench.core import options
from certbench.verifiers.smoothing.noise.families import NOISES, Noise
from certbench.verifiers.smoothing.noise.integer import IntegerGaussian

options.family(Noise, {**NOISES, "integer-gaussian": IntegerGaussian})
