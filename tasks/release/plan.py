"""What `keiryo plan` says before anything runs."""

from configs.schema import Config
from configs.weights import WeightSettings
from tasks.models.checkpoint import Architecture
from tasks.profiling.recommend import Recommendation
from tasks.quality.planning import MetricPlan
from tasks.store.record import Record


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
