"""The loss on held-out text while a model is trained: the best state is kept, and training ends where nothing is gained any more.

Held-out text here is of the search side of the split: it ranks, and is never what a verdict is taken on. What was seen lies beside the
training checkpoints, so that a run that was killed goes on with it.
"""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback

from configs.training import TrainingSettings

BEST, LOOKS = "best.safetensors", "looks.json"


class HeldOut(TrainerCallback):  # type: ignore[misc]
    """Looks before the first step, at every training checkpoint and after the last step.

    Attributes:
        looks: loss by the number of steps done before the look, nats.
        seconds: wall time of the looks between steps.
    """

    def __init__(
        self, model: nn.Module, loss: Callable[[], float], settings: TrainingSettings, scratch: Path
    ) -> None:
        """Nothing is looked at yet.

        Args:
            model: its parameters that require a gradient are kept.
            loss: of the model as it is, on the held-out text.
            settings: `checkpoint_steps` between looks, `patience` in looks.
            scratch: where the best state is kept.
        """
        self._model, self._loss, self._settings, self._scratch = model, loss, settings, scratch
        self.looks: dict[int, float] = {}
        self.seconds = 0.0

    def on_train_begin(self, _: Any, state: Any, __: Any, **___: Any) -> None:
        """Take up the looks of a run that was killed, or look at the untrained model."""
        path = self._scratch / LOOKS
        if state.global_step and path.is_file():
            seen = json.loads(path.read_text())
            self.looks = {int(step): loss for step, loss in seen.items() if int(step) <= state.global_step}
        if not self.looks:
            self._look(state.global_step)

    def on_step_end(self, _: Any, state: Any, control: Any, **__: Any) -> None:
        """Look where it is time to; end training after `patience` looks without a lower loss."""
        step = state.global_step
        if step in self.looks or (step % self._settings.checkpoint_steps and step != self._settings.steps):
            return
        began_s = time.perf_counter()
        self._look(step)
        self.seconds += time.perf_counter() - began_s
        since = sum(later > self.best for later in self.looks)
        if self._settings.patience is not None and since >= self._settings.patience:
            control.should_training_stop = True

    @property
    def best(self) -> int:
        """Steps done at the look with the least loss."""
        return min(self.looks, key=lambda step: (self.looks[step], step))

    def restore(self) -> None:
        """Put the best state back into the model."""
        best = load_file(self._scratch / BEST)
        for name, parameter in self._model.named_parameters():
            if name in best:
                parameter.data.copy_(best[name])

    def _look(self, step: int) -> None:
        loss = self._loss()
        self.looks[step] = loss if math.isfinite(loss) else math.inf
        if self.best == step:
            tensors = {
                name: p.detach().contiguous() for name, p in self._model.named_parameters() if p.requires_grad
            }
            self._scratch.mkdir(parents=True, exist_ok=True)
            save_file(tensors, self._scratch / f"{BEST}.part")
            (self._scratch / f"{BEST}.part").replace(self._scratch / BEST)
        (self._scratch / LOOKS).write_text(json.dumps(self.looks))
