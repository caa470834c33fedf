"""What the training of a recipe's adapt stage takes, before anything runs; a limit that nothing fits into is told then."""

from configs.engine import EngineName
from configs.load import ConfigError
from configs.training import AdaptSettings, LoraSettings, TrainingSettings
from configs.weights import WeightSettings
from tasks.profiling.build_memory import build_phases, peak_bytes, text_tokens
from tasks.profiling.training_memory import TrainedScales, trained_parameters, trained_scales
from tasks.release.autocast import decide_autocast
from tasks.release.workspace import Workspace
from tasks.store.record import Record
from tasks.training.error import TrainingError
from tasks.training.log import Saving
from tasks.training.memory_saving import choose_saving, predicted_mib

ROUNDING = "GPTQ before recovery"
_MIB = 2**20


class TrainingNeed(Record):
    """One adapter, recovery, or the rounding that recovery starts from.

    Attributes:
        method: its label.
        arithmetic: f32 or bf16.
        trained_parameters: values that are trained; of recovery in the declared format that has most.
        saving: what is done to save memory.
        peak_mib: most that it adds to the process, by closed form.
    """

    method: str
    arithmetic: str
    trained_parameters: int
    saving: Saving
    peak_mib: float


def training_needs(workspace: Workspace) -> tuple[TrainingNeed, ...]:
    """Of every adapter that is trained on data, and of recovery, whose challenger is not known yet: at most.

    Raises:
        ConfigError: one does not fit into `adapt.max_memory_mib`, or has a target that this decoder does not have, or the model's
            shape is not covered by the formulas.
    """
    settings = workspace.config.adapt
    if settings is None:
        return ()
    found = []
    if settings.data is not None:
        training = decide_autocast(workspace, settings.training)
        for number, lora in enumerate(settings.methods):
            found.append(_need(workspace, settings, f"methods.{number}", training, lora))
    return (*found, *_recovery(workspace, settings))


def _recovery(workspace: Workspace, settings: AdaptSettings) -> tuple[TrainingNeed, ...]:
    quantize, architecture = workspace.config.quantize, workspace.architecture
    asked = workspace.config.possible_recovery
    if asked is None or quantize is None:
        return ()
    formats = {(each.engine, each.weights) for each in quantize.recoverable}
    # Layers that are named stay at 8 bits, with a scale a channel but for ONNX Runtime; which a budget names is not known yet.
    scales = max(
        (
            trained_scales(
                architecture, weights.group_size, () if engine == "onnxruntime" else weights.int8_layers
            )
            for engine, weights in formats
        ),
        key=lambda each: each.count,
    )
    training = decide_autocast(workspace, asked)
    needs = [_need(workspace, settings, "recovery", training, scales)]
    rounded = [(engine, weights.by_gptq()) for engine, weights in formats if not weights.is_from_grids]
    if rounded:
        try:
            peak = max(_rounding_bytes(workspace, engine, weights) for engine, weights in rounded)
        except ValueError as error:
            raise ConfigError(f"adapt.recovery: {error}") from error
        rounding = TrainingNeed(
            method=ROUNDING, arithmetic="f32", trained_parameters=0, saving="none", peak_mib=peak / _MIB
        )
        needs.insert(0, rounding)
    return tuple(needs)


def _rounding_bytes(workspace: Workspace, engine: EngineName, weights: WeightSettings) -> int:
    sections = workspace.splits.calibration[: weights.calibration_samples]
    tokens = text_tokens([section.text for section in sections])
    phases = build_phases(workspace.architecture, engine, weights, calibration_tokens=tokens)
    return peak_bytes(tuple(phase for phase in phases if phase.name in ("importance", "grids")))


def _need(
    workspace: Workspace,
    settings: AdaptSettings,
    section: str,
    training: TrainingSettings,
    trained: LoraSettings | TrainedScales,
) -> TrainingNeed:
    architecture = workspace.architecture
    try:
        saving = choose_saving(architecture, training, trained, settings.max_memory_mib)
        count = trained_parameters(architecture, trained)
    except (TrainingError, ValueError) as error:
        raise ConfigError(f"adapt.{section}: {error}") from error
    return TrainingNeed(
        method=trained.label,
        arithmetic="bf16" if training.autocast == "bf16" else "f32",
        trained_parameters=count,
        saving=saving,
        peak_mib=predicted_mib(architecture, training, trained, saving),
    )
