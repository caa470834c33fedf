"""What every stage of one rollout works on: the configuration, the store, the source model, the text and the tasks."""

from dataclasses import dataclass
from pathlib import Path

from configs.schema import Config
from tasks.data.text import TextSplits
from tasks.models.checkpoint import Architecture
from tasks.store.artifact import Artifact
from tasks.store.store import Store


@dataclass(frozen=True)
class Workspace:
    """Made once a rollout, then handed to every stage.

    Attributes:
        config: the whole configuration.
        store: artifacts and remembered results.
        source: the source model's sealed checkpoint.
        architecture: its dimensions.
        splits: disjoint text for training, calibration, search and gate.
        task_folder: the gate's task definitions; None when the tasks are lm-eval's own.
        items_digest: digest of splits and tasks: a part of every quality key.
        derived: folder of what can be made again: reference logits, half-scored samples, training checkpoints.
    """

    config: Config
    store: Store
    source: Artifact
    architecture: Architecture
    splits: TextSplits
    task_folder: Path | None
    items_digest: str
    derived: Path
