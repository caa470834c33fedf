"""What saves memory in training, in the order of its cost.

Nothing; giving freed memory back at once; computing activations again; optimizer states of 8 bits beside that.

**Giving back.** glibc before 2.38 cannot put an aligned block into the hole that one of the same size left, so that intermediate
results of a forward pass leave holes between those that are kept. LoRA on a model of 135M parameters, 4 x 256 tokens in float32, grew
by 3,090 MiB where 1,900 were in use. Blocks above a threshold can be mapped one by one instead: what is freed is gone. Steps took a
quarter (1 MiB) to a half (128 KiB, which leaves less) longer. A GPU's memory is not glibc's: nothing to give back.

**Computing again** keeps the input of every layer alone, and runs each layer's forward pass twice (Chen et al. 2016, arXiv:1604.06174).

**Low-bit states** are AdamW's moments in blocks of 256 with a scale each (Dettmers et al. 2022, arXiv:2110.02861): a quarter of
eight bytes a trained value. An adapter has few of those, so this comes last; with every weight trained they are the larger part
(`training.optimizer_bits`).
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

from configs.training import LoraSettings, TrainingSettings
from tasks.models.checkpoint import Architecture
from tasks.profiling.training_memory import CHUNK_TOKENS, TrainedScales, training_budget
from tasks.training.device import training_device
from tasks.training.error import TrainingError
from tasks.training.log import Saving

FRAGMENTED, SCALES_FRAGMENTED = 1.6, 1.27
"""Growth over what is in use where nothing is given back: 1.55 to 1.62 measured of adapters, 1.27 of trained scales (f32, bf16)."""

RECOMPUTED: tuple[Saving, ...] = ("checkpointing", "low_bit_states")
"""Ways that compute activations again."""

_M_MMAP_THRESHOLD = -3  # malloc.h of glibc
_MAPPED_BYTES = 1 << 17
_USUAL_BYTES = 32 << 20  # where glibc's own threshold ends up once large blocks were freed


def choose_saving(
    architecture: Architecture,
    training: TrainingSettings,
    trained: LoraSettings | TrainedScales,
    max_mib: float | None,
) -> Saving:
    """The fastest way to train an adapter or scales that fits.

    Args:
        architecture: of the model.
        training: batch, sequence length, `autocast` decided.
        trained: the adapter or the scales.
        max_mib: most that training may add to the process; None: no limit.

    Raises:
        TrainingError: none fits; the message says what the least takes.
    """
    if max_mib is None:
        return "none"
    needed = {saving: predicted_mib(architecture, training, trained, saving) for saving in _ways()}
    for saving, mib in needed.items():
        if mib <= max_mib:
            return saving
    section = "recovery" if isinstance(trained, TrainedScales) else "training"
    raise TrainingError(
        f"adapt.max_memory_mib is {max_mib:.0f}: {trained.label} on {training.batch_sequences} x {training.sequence_tokens} tokens "
        f"takes {min(needed.values()):.0f} MiB at least, activations computed again and optimizer states of 8 bits; raise it, or lower "
        f"adapt.{section}.batch_sequences or sequence_tokens"
    )


def predicted_mib(
    architecture: Architecture,
    training: TrainingSettings,
    trained: LoraSettings | TrainedScales,
    saving: Saving,
) -> float:
    """Peak growth of the process, MiB, by closed form; without saving, times what glibc leaves in holes."""
    holes = SCALES_FRAGMENTED if isinstance(trained, TrainedScales) else FRAGMENTED
    budget = training_budget(
        architecture,
        with_saving(training, saving),
        trained,
        logit_tokens=CHUNK_TOKENS,
        recomputed=saving in RECOMPUTED,
        fragmented=holes if saving == "none" and _glibc() else 1.0,
        loaded_here=training_device() == "cpu",
    )
    return budget.total_bytes / 2**20


def with_saving(training: TrainingSettings, saving: Saving) -> TrainingSettings:
    """The settings as a way of saving changes them."""
    return training.model_copy(update={"optimizer_bits": 8}) if saving == "low_bit_states" else training


@contextmanager
def giving_back(saving: Saving) -> Iterator[None]:
    """Large blocks are mapped one by one inside, where that was chosen."""
    library = _glibc() if saving != "none" else None
    if library is None:
        yield
        return
    library.mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)
    try:
        yield
    finally:
        library.mallopt(_M_MMAP_THRESHOLD, _USUAL_BYTES)


def _ways() -> tuple[Saving, ...]:
    return ("none", *(("give_back",) if _glibc() else ()), "checkpointing", "low_bit_states")


def _glibc() -> ctypes.CDLL | None:
    """The C library, where it is glibc and holds what is trained."""
    if training_device() == "cuda":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") and hasattr(library, "mallopt") else None
