"""The memory that a draft model adds to the candidate it drafts for, in closed form."""

from configs.schema import RequestSettings
from configs.weights import WeightSettings
from tasks.models.checkpoint import read_architecture
from tasks.profiling.memory_budget import MemoryBudget, serving_budget
from tasks.release.candidate import Candidate
from tasks.store.artifact import Artifact
from tasks.store.errors import MissingArtifact
from tasks.store.store import Store


def draft_budget(store: Store, candidate: Candidate, requests: RequestSettings) -> MemoryBudget | None:
    """What serving the draft takes beside its target; None for a candidate without one.

    Its weights are packed and its cache is kept like any model's; the engine itself is there once, for both.

    Raises:
        StoreError: an artifact that it was made from is missing or damaged.
    """
    if candidate.draft is None:
        return None
    draft = store.open(candidate.draft)
    weights = WeightSettings.model_validate(draft.manifest.recipe.get("weights", {}))
    budget = serving_budget(
        read_architecture(checkpoint_of(store, draft)), weights, candidate.engine, requests
    )
    alone = {name: getattr(budget, name) - budget.runtime_bytes for name in ("total_bytes", "endless_bytes")}
    return budget.model_copy(update={"runtime_bytes": 0} | alone)


def checkpoint_of(store: Store, artifact: Artifact) -> Artifact:
    """The checkpoint that an artifact was exported from: itself, or the first one among its parents.

    Raises:
        StoreError: a parent is missing or damaged, or no checkpoint is among them.
    """
    while artifact.kind != "checkpoint":
        if artifact.manifest.parent is None:
            raise MissingArtifact(
                f"no checkpoint is among the parents of artifact {artifact.digest}; build it again"
            )
        artifact = store.open(artifact.manifest.parent)
    return artifact
