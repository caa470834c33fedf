"""What an option should come out at, from what like options came out at: Gaussian-process regression over the settings of a space.

Two options are alike to the degree that their settings are: the correlation of their figures is a product over the settings in which
they differ (Roustant et al. 2020, arXiv:1802.02368, the compound-symmetry kernel of categorical inputs). So one round-to-nearest
format, which takes seconds to build, says what its calibrated relatives serve at, to a few percent, and how they rank; an int8 format
with one cache type says nearly all about the other. Everything is done on logarithms: quality, speed and time move by factors.
Beneath the differences lies a level that is common to all options, which the first figures of a new model or machine settle.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.quantization.options import Option

Floats = NDArray[np.float64]
ESTIMATE_NOISE = 0.25
"""Of a logarithm: how far an estimate from measured relatives may be off."""


@dataclass(frozen=True)
class Figure:
    """How one figure of an option depends on its settings.

    Attributes:
        expected: its logarithm before anything is known.
        level: deviation of what all options have in common.
        spread: deviation of one option about that.
        alike: correlation of two options that differ in one setting, by its name.
        noise: of its logarithm: how closely one measurement repeats.
    """

    expected: Callable[[Option], float]
    level: float
    spread: float
    alike: Mapping[str, float]
    noise: float = 0.03

    def predict(
        self, options: Sequence[Option], known: Mapping[str, float], estimated: Mapping[str, float] = {}
    ) -> tuple[Floats, Floats]:
        """Mean and standard deviation of the logarithm for every option.

        Args:
            options: all of them, the known ones included.
            known: the figure itself of some, by name; above 0.
            estimated: of others, from something measured.
        """
        values = {**estimated, **known}
        seen = [number for number, each in enumerate(options) if each.name in values]
        expected = np.array([self.expected(each) for each in options])
        correlation = self._correlation(options)
        if not seen:
            return expected, np.sqrt(self.level**2 + self.spread**2 * correlation.diagonal())
        surprise = np.log([values[options[number].name] for number in seen]) - expected[seen]
        covariance = (
            self.level**2 + self._learnt_spread(surprise, correlation[np.ix_(seen, seen)]) ** 2 * correlation
        )
        noise = np.array([self.noise if options[number].name in known else ESTIMATE_NOISE for number in seen])
        within = covariance[np.ix_(seen, seen)] + np.diag(noise**2)
        carried = np.linalg.solve(within, covariance[seen]).T
        mean = expected + carried @ surprise
        variance = covariance.diagonal() - (carried * covariance[:, seen]).sum(1)
        return mean, np.sqrt(np.maximum(variance, self.noise**2))

    def _learnt_spread(self, surprise: Floats, correlation: Floats) -> float:
        """The spread that the surprises show, beside BELIEF of the declared one: generalized least squares about their own level."""
        weights = np.linalg.solve(correlation + RIDGE * np.eye(len(surprise)), np.ones(len(surprise)))
        apart = surprise - weights @ surprise / weights.sum()
        shown = float(apart @ np.linalg.solve(correlation + RIDGE * np.eye(len(surprise)), apart))
        freedom = len(surprise) - 1
        return math.sqrt((BELIEF * self.spread**2 + shown) / (BELIEF + freedom))

    def _correlation(self, options: Sequence[Option]) -> Floats:
        traits = [each.traits for each in options]
        correlation = np.ones((len(options), len(options)))
        for name, alike in self.alike.items():
            values = list(dict.fromkeys(each[name] for each in traits))
            of = np.array([values.index(each[name]) for each in traits])
            correlation *= np.where(of[:, None] == of[None, :], 1.0, alike)
        return correlation


BELIEF = 1.0
"""Weight of the declared spread, in observations."""
RIDGE = 0.02
"""Of one option's own in the correlation, where two differ in nothing that counts."""

_CALIBRATED = {
    "none": 1.0, "k_quant": 1.0, "hqq": 0.8, "awq": 0.8, "scale_estimation": 0.7, "awq+scale_estimation": 0.65,
    "lora_correction": 0.6, "awq+scale_estimation+lora_correction": 0.5, "nncf_gptq": 0.7, "gptq": 0.4,
    "source_grid": 0.02,
}  # fmt: skip
"""Divergence beside rounding to nearest; `docs/log.md` and `docs/bench/four_bit.md`, one model, rough."""


def _expected_nats(option: Option) -> float:
    """Logarithm of the divergence, as the demo model's formats came out."""
    weights, engine = option.weights, option.engine
    if weights.bits in (16, 32):
        nats = 1e-3
    elif weights.bits == 8:
        nats = 0.008
    else:
        group = {32: 0.85, 128: 1.2, -1: 2.5}.get(weights.group_size, 1.0)
        eight = bool(weights.int8_layers or weights.max_bytes_fraction or weights.max_rounding_nats)
        nats = 0.33 * group * _CALIBRATED[weights.calibration] * (0.5 if eight else 1.0)
        nats *= (0.95 if eight else 0.85) if weights.output_feedback else 1.0
        nats *= (1 - weights.int8_ratio) ** 2.5 * (1.0 if weights.symmetric else 0.9)
    nats += {"u4": 0.02, "u8": 0.0003}.get(engine.kv_cache, 0.0)
    nats += 0.001 * (engine.compute == "bf16") + 0.001 * bool(engine.activation_group)
    return math.log(nats)


def _expected_speed(option: Option) -> float:
    """Decoding reads the weights and other things besides; the level is the machine's."""
    return -0.3 * math.log(option.weights_mib)


DIVERGENCE = Figure(
    _expected_nats, level=0.5, spread=0.6,
    alike={"engine": 0.9, "bits": 0.3, "symmetric": 0.9, "group_size": 0.9, "calibration": 0.9, "eight": 0.9,
           "output_feedback": 0.9, "embedding_bits": 0.9, "compute": 0.95, "activation_group": 0.95, "kv_cache": 0.95},
)  # fmt: skip
SPEED = Figure(
    _expected_speed, level=3.0, spread=0.5, noise=0.06,  # short runs of the same weights with other caches lie as far apart
    alike={"engine": 0.5, "bits": 0.7, "symmetric": 0.95, "group_size": 0.97, "calibration": 0.995, "eight": 0.95,
           "output_feedback": 0.995, "embedding_bits": 0.97, "compute": 0.7, "activation_group": 0.8, "kv_cache": 0.9},
)  # fmt: skip
BUILD_SECONDS = Figure(
    lambda option: math.log(max(option.build_s, 0.1)), level=0.7, spread=0.5,
    alike={"engine": 0.6, "bits": 0.9, "symmetric": 0.98, "group_size": 0.98, "calibration": 0.6, "eight": 0.8,
           "output_feedback": 0.8},
)  # fmt: skip
