"""Before the first stage: the model, its text and its tasks, and a check that the configuration fits them."""

from collections.abc import Mapping
from pathlib import Path

from configs.load import ConfigError
from configs.schema import Config
from configs.weights import WeightSettings
from tasks.behaviour.prompts import prompts_of
from tasks.data.text import TextSplits, split_text
from tasks.judging.human_labels import read_labels
from tasks.models.checkpoint import Architecture, read_architecture
from tasks.models.sources import acquire
from tasks.quality.pack.write import PackInfo, write_pack
from tasks.quality.planning import MetricPlan, plan_items, refuse_undecidable
from tasks.quality.task_folder import folder_digest
from tasks.release.gate_tasks import judged_tasks
from tasks.release.training_data import check_training_data
from tasks.release.training_plan import training_needs
from tasks.release.workspace import Workspace
from tasks.serving.nvml import open_gpus
from tasks.serving.workload import check_load
from tasks.store.digest import code_digest, digest_of, library_versions
from tasks.store.store import Store, store_home


def make_workspace(config: Config) -> Workspace:
    """Acquire the model, split the text, write the tasks.

    Raises:
        ModelSourceError, TextError, TraceError, DataError, ConfigError, PlanError, QualityError, BehaviourError, LabelError: the
            input cannot be used; each names the setting.
        StoreError: the disk is full.
    """
    refuse_undecidable(plan_quality(config))
    check_gpu(config)
    check_prompts(config)
    check_load(config.load)
    store = Store(store_home())
    source = acquire(config.model, store)
    architecture = read_architecture(source)
    check_group_sizes(config, architecture)
    splits = split_text(config.quality.text, config.quality.seed)
    task_folder, tasks_digest = _tasks(config, store, splits)
    items_digest = digest_of([splits.digest, tasks_digest])
    derived = store.home / "derived"
    derived.mkdir(exist_ok=True)
    if (
        config.judge is not None
        and config.judge.provider.kind == "local"
        and config.judge.provider.model is not None
    ):
        acquire(config.judge.provider.model, store)
    workspace = Workspace(config, store, source, architecture, splits, task_folder, items_digest, derived)
    if sizes := judged_tasks(workspace):
        refuse_undecidable(plan_quality(config, sizes))
    check_training_data(workspace)
    if config.adapt is not None and config.adapt.max_memory_mib is not None:
        training_needs(workspace)
    return workspace


def _tasks(config: Config, store: Store, splits: TextSplits) -> tuple[Path | None, str]:
    """The folder of the gate's tasks, None for lm-eval's own, and what they are, by content."""
    seed, named = config.quality.seed, config.quality.tasks.pack
    if named is None:
        return None, f"lm-eval {library_versions('lm-eval')['lm-eval']}"
    if named != "embedded":
        return Path(named), folder_digest(Path(named))
    key = f"pack-{digest_of([splits.digest, seed, code_digest('tasks/quality/pack')])}"
    folder = store.home / "files" / key
    info, _ = store.once(key, PackInfo, lambda: write_pack(folder, splits, seed))
    return folder / "gate", info.digest


def check_gpu(config: Config) -> None:
    """Look for a GPU where the configuration wants one, before a model is fetched.

    Raises:
        ConfigError: NVML knows none.
    """
    devices = {
        "profile.baseline": {config.profile.baseline.device},
        "quality.reference": {config.quality.reference.device},
        "quantize": {each.device for each in config.quantize.declared} if config.quantize else set(),
    }
    for setting, wanted in devices.items():
        if "cuda" in wanted and not open_gpus():
            raise ConfigError(
                f"{setting}: device is cuda, and no NVIDIA GPU with its driver is here; use device: cpu, or a machine with one"
            )


def check_prompts(config: Config) -> None:
    """Read the prompts of `behaviour` and the labels of `judge`, so that a bad line is told before anything runs.

    Raises:
        BehaviourError, LabelError: the message names file, line and field.
    """
    if config.behaviour is not None:
        prompts_of(config.behaviour)
    if config.judge is not None and config.judge.calibration.human_labels is not None:
        read_labels(Path(config.judge.calibration.human_labels))


def plan_quality(config: Config, sizes: Mapping[str, int] | None = None) -> tuple[MetricPlan, ...]:
    """What every margin of the configuration needs, and what the configured items can show.

    Args:
        config: the configuration.
        sizes: items that each task really has, at most the configured ones; None: before the tasks are read.
    """
    quality = config.quality
    return plan_items(
        quality.margins,
        alpha=quality.alpha,
        tries=quality.tries,
        power=quality.power,
        discordance=quality.discordance,
        tasks=tuple(sizes or quality.tasks.names),
        items=sizes or quality.tasks.items,
        sections=quality.text.gate_sections,
        sequential=quality.sequential,
    )


def check_group_sizes(config: Config, architecture: Architecture) -> None:
    """Every group size must divide the input dimension of every linear layer.

    Raises:
        ConfigError: one does not.
    """
    inputs = {
        "hidden size": architecture.hidden,
        "intermediate size": architecture.intermediate,
        "attention width": architecture.heads * architecture.head_dim,
    }
    if config.quantize is None:
        return
    for index, candidate in enumerate(config.quantize.candidates):
        check_group_size(f"quantize.candidates.{index}.weights.group_size", candidate.weights, inputs)
    for index, space in enumerate(config.quantize.space):
        for candidate in space.candidates:
            check_group_size(f"quantize.space.{index}.group_size", candidate.weights, inputs)


def check_group_size(where: str, weights: WeightSettings, inputs: dict[str, int]) -> None:
    """One group size against all input dimensions.

    Raises:
        ConfigError: it does not divide one of them.
    """
    size = weights.group_size
    if size == -1:
        return
    for name, dimension in inputs.items():
        if dimension % size:
            fitting = [g for g in (16, 32, 64, 128, 256) if all(d % g == 0 for d in inputs.values())]
            raise ConfigError(
                f"{where} = {size}: must divide the model's {name} {dimension}; use "
                f"{', '.join(map(str, fitting))} or -1 (per channel)"
            )
