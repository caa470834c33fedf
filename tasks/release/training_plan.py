"""What training the adapters of a recipe takes, before anything runs; a limit that nothing fits into is told then."""

from configs.load import ConfigError
from tasks.profiling.training_memory import lora_parameters
from tasks.release.autocast import decide_autocast
from tasks.release.workspace import Workspace
from tasks.store.record import Record
from tasks.training.error import TrainingError
from tasks.training.log import Saving
from tasks.training.memory_saving import choose_saving, predicted_mib


class TrainingNeed(Record):
    """One adapter.

    Attributes:
        method: its label.
        arithmetic: f32 or bf16.
        trained_parameters: values that are trained.
        saving: what is done to save memory.
        peak_mib: most that training adds to the process, by closed form.
    """

    method: str
    arithmetic: str
    trained_parameters: int
    saving: Saving
    peak_mib: float


def training_needs(workspace: Workspace) -> tuple[TrainingNeed, ...]:
    """Of every adapter that is trained on data.

    Raises:
        ConfigError: one does not fit into `adapt.max_memory_mib`, or has a target that this decoder does not have.
    """
    settings, architecture = workspace.config.adapt, workspace.architecture
    if settings is None or settings.data is None:
        return ()
    training = decide_autocast(workspace, settings.training)
    found = []
    for number, lora in enumerate(settings.methods):
        try:
            saving = choose_saving(architecture, training, lora, settings.max_memory_mib)
            trained = lora_parameters(architecture, lora)
        except (TrainingError, ValueError) as error:
            raise ConfigError(f"adapt.methods.{number}: {error}") from error
        need = TrainingNeed(
            method=lora.label,
            arithmetic="bf16" if training.autocast == "bf16" else "f32",
            trained_parameters=trained,
            saving=saving,
            peak_mib=predicted_mib(architecture, training, lora, saving),
        )
        found.append(need)
    return tuple(found)
