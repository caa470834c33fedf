"""What `keiryo plan` says before anything runs."""

from collections.abc import Iterator, Sequence

from pydantic import SerializeAsAny

from configs.engine import EngineSettings
from configs.schema import Config
from configs.weights import WeightSettings
from tasks.profiling.environment import environment, memory_limit_bytes
from tasks.profiling.memory_budget import serving_budget
from tasks.profiling.recommend import Recommendation, recommend
from tasks.quality.planning import MetricPlan, joint_power
from tasks.release.effort import disk_bytes, rollout_seconds
from tasks.release.preparation import plan_quality
from tasks.release.stage_result import StageResult
from tasks.release.training_plan import TrainingNeed, training_needs
from tasks.release.workspace import Workspace
from tasks.store.record import Record

MIB = 2**20


class BudgetRow(Record):
    """Predicted serving memory of one format at one context and batch, MiB."""

    engine: str
    weights: str
    kv_cache: str
    context_tokens: int
    batch: int
    weights_mib: float
    kv_mib: float
    activations_mib: float
    total_mib: float


class Plan(Record):
    """The preflight of one configuration.

    Attributes:
        config: name of the recipe.
        model: name of the model.
        machine: fingerprint.
        budgets: memory by format, context and batch.
        samples: what each margin needs.
        joint_power: chance that an equal candidate passes on everything.
        disk_mib: artifacts and reference logits that the rollout would write.
        minutes: rough time, from the tokens to score and to train and this machine's speed where it was measured.
        recommendations: the stack, with reasons.
        training: what every adapter takes, and recovery with the rounding before it.
        quantize: what every declared candidate takes, and which do not fit (`tasks/quantization/preflight.py`).
    """

    config: str
    model: str
    machine: dict[str, str]
    budgets: tuple[BudgetRow, ...]
    samples: tuple[MetricPlan, ...]
    joint_power: float
    disk_mib: float
    minutes: float
    recommendations: tuple[Recommendation, ...]
    training: tuple[TrainingNeed, ...] = ()
    quantize: SerializeAsAny[Record] | None = None


def make_plan(
    workspace: Workspace, results: Sequence[StageResult] = (), quantize: Record | None = None
) -> Plan:
    """Budget, samples, effort and recommended stack; runs no model.

    Args:
        workspace: of the configuration.
        results: stages of an earlier rollout of this model; where they measured something, that speaks.
        quantize: the preflight of the quantize stage.

    Raises:
        PlanError: a margin cannot be planned for.
        ConfigError: an adapter or recovery does not fit.
    """
    config = workspace.config
    samples = plan_quality(config)
    goal_mib = config.goals.max_peak_mib
    return Plan(
        config=config.name,
        model=config.model.name,
        machine=environment(),
        budgets=tuple(_budgets(workspace)),
        samples=samples,
        joint_power=joint_power(samples),
        disk_mib=disk_bytes(workspace) / MIB,
        minutes=rollout_seconds(workspace) / 60,
        recommendations=recommend(
            parameters=workspace.architecture.parameters,
            memory_limit_bytes=int(goal_mib * MIB) if goal_mib else memory_limit_bytes(),
            latency_ms=config.goals.max_itl_ms_p95,
            quality_priority="high" if config.quality.margins.kl_nats else "normal",
            results=results,
        ),
        training=training_needs(workspace),
        quantize=quantize,
    )


def formats(config: Config) -> list[tuple[WeightSettings, EngineSettings]]:
    """The source on the baseline engine, then every declared candidate."""
    found = [(WeightSettings(), config.profile.baseline)]
    for declared in config.quantize.declared if config.quantize else ():
        for kv_cache in declared.kv_cache:
            engine = EngineSettings(
                engine=declared.engine, device=declared.device, compute=declared.compute, kv_cache=kv_cache,
                activation_group=declared.activation_group, threads=config.threads,
            )  # fmt: skip
            found.append((declared.weights, engine))
    return found


def _budgets(workspace: Workspace) -> Iterator[BudgetRow]:
    config = workspace.config
    for weights, engine in formats(config):
        for context in config.profile.context_tokens:
            for batch in config.profile.batch_sizes:
                requests = config.requests.model_copy(update={"prompt_tokens": context, "count": batch})
                slots = engine.scheduler.model_copy(update={"max_num_seqs": batch})
                budget = serving_budget(
                    workspace.architecture, weights, engine.model_copy(update={"scheduler": slots}), requests
                )
                yield BudgetRow(
                    engine=engine.engine,
                    weights=weights.label,
                    kv_cache=engine.kv_cache,
                    context_tokens=context,
                    batch=batch,
                    weights_mib=budget.weights_bytes / MIB,
                    kv_mib=budget.kv_cache_bytes / MIB,
                    activations_mib=budget.activations_bytes / MIB,
                    total_mib=budget.total_bytes / MIB,
                )
