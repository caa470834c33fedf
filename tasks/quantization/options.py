"""The points of a space before anything is tried: what each is called, how it is built, and what it should take."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from configs.engine import EngineSettings
from configs.quantize import QuantizeSettings
from configs.schema import Config, RequestSettings
from configs.space import WeightCandidate
from configs.weights import WeightSettings
from tasks.quantization.candidate_needs import CandidatePreflight, candidate_name


@dataclass(frozen=True)
class Option:
    """One weight format under one engine configuration.

    Attributes:
        name: of the candidate.
        declared: the format, with this one cache type.
        engine: the configuration it is served under.
        weights_mib: closed form; exact but for the engine's padding.
        build_s: by this machine's earlier builds, else by a table of rates.
        score_s: scoring the search text, or a short run of requests; rough.
    """

    name: str
    declared: WeightCandidate
    engine: EngineSettings
    weights_mib: float
    build_s: float
    score_s: float

    @property
    def weights(self) -> WeightSettings:
        """The format."""
        return self.declared.weights

    @property
    def build(self) -> tuple[str, WeightSettings, bool]:
        """What options that are served from one artifact have in common; ONNX Runtime's integer caches have ranges in it."""
        has_ranges = self.engine.engine == "onnxruntime" and self.engine.has_integer_cache
        return self.engine.engine, self.weights, has_ranges

    @property
    def is_nearest(self) -> bool:
        """Whether every layer is rounded to nearest, at the same bits."""
        traits = self.traits
        return bool(traits["calibration"] == "none" and not any(traits["eight"]))

    @property
    def family(self) -> tuple[object, ...]:
        """What options have in common that differ in calibration, budget and serving only."""
        return tuple(
            self.traits[name] for name in ("engine", "bits", "symmetric", "group_size", "embedding_bits")
        )

    @property
    def traits(self) -> dict[str, Any]:
        """By what it is like other options, each setting once."""
        weights, engine = self.weights, self.engine
        return {
            "engine": engine.engine,
            "bits": (weights.bits, weights.number),
            "symmetric": weights.symmetric,
            "group_size": weights.group_size,
            "calibration": weights.calibration,
            "output_feedback": weights.output_feedback,
            "eight": (
                weights.int8_ratio, weights.int8_layers, weights.max_bytes_fraction, weights.max_rounding_nats,
            ),
            "embedding_bits": weights.embedding_bits,
            "compute": engine.compute,
            "activation_group": engine.activation_group,
            "kv_cache": engine.kv_cache,
        }  # fmt: skip


def brief(requests: RequestSettings) -> RequestSettings:
    """A short run of the same requests: each measured once. What is measured once anyway is not run twice."""
    return requests.model_copy(update={"repeats": 1})


def served(declared: WeightCandidate, settings: QuantizeSettings, threads: int) -> Iterator[EngineSettings]:
    """The engine configurations of a declared candidate, one a cache type."""
    for kv_cache in declared.kv_cache:
        yield EngineSettings(
            engine=declared.engine,
            device=declared.device,
            compute=declared.compute,
            kv_cache=kv_cache,
            activation_group=declared.activation_group,
            threads=threads,
            scheduler=settings.scheduler,
        )


def options_of(
    config: Config, predicted: Mapping[str, CandidatePreflight], score_s: float
) -> tuple[Option, ...]:
    """Every declared candidate and every point of the space that is predicted to fit.

    Args:
        config: of the rollout.
        predicted: by the preflight, by name; what it refused is left out.
        score_s: how long scoring the search text should take, seconds.
    """
    settings = config.quantize
    if settings is None:
        return ()
    found: dict[str, Option] = {}
    for declared in settings.declared:
        for engine in served(declared, settings, config.threads):
            name = candidate_name(engine, declared.weights)
            needs = predicted.get(name)
            if needs is not None and needs.refused is None:
                found[name] = Option(name, declared, engine, needs.weights_mib, needs.seconds, score_s)
    return tuple(found.values())
