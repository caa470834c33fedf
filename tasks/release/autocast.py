"""`autocast: auto`, decided by what this machine multiplies faster."""

from configs.training import TrainingSettings
from tasks.engines.arithmetic import MultiplyRates, multiply_rates
from tasks.release.machine import machine_digest
from tasks.release.workspace import Workspace

F32_GAIN = 1.2  # float32 has to be faster by this: training keeps about 1.7 times as many bytes in it


def decide_autocast(workspace: Workspace, training: TrainingSettings) -> TrainingSettings:
    """The same training with `autocast` none or bf16; what the recipe of an artifact names is what was done.

    The rates are measured once for a machine and a number of threads, so that what they decide stays decided.

    Args:
        workspace: its store remembers the rates.
        training: as configured.
    """
    if training.autocast != "auto":
        return training
    key = f"multiply-rates-{machine_digest()}-{workspace.config.threads}"
    rates, _ = workspace.store.once(key, MultiplyRates, multiply_rates)
    faster = rates.f32_gflops > F32_GAIN * rates.bf16_gflops
    return training.model_copy(update={"autocast": "none" if faster else "bf16"})
