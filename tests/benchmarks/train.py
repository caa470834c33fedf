"""`make bench PART=train`: real tokens a second of adapter training, against peft with transformers' Trainer as both come.

Work: rank-16 LoRA on all linear layers of the demo model, chats of `instruct/sft_mix_train.jsonl` under the model's template, batches
of 4 sequences of at most 256 tokens. Only real tokens count, padding does not. The peer pads its batches and leaves the rest to
the defaults, float32 among them; once more with `bf16=True`. Ours computes in what `autocast: auto` decides here. Beside ours each
optimization is taken out alone; what it contributes is the ratio. `compile`, and on a GPU `liger`, are put in, not out: they are
options. Blocks of STEPS steps, interleaved, ROUNDS times, the order turned round each time; the first round only warms up.
"""

import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.training import LoraSettings, TrainingSettings
from flows.offline import prepare_environment
from tasks.adaptation.chat_template import chat_template_of
from tasks.adaptation.lora import with_adapter
from tasks.data.training_rows import read_rows, training_texts
from tasks.engines.arithmetic import multiply_rates
from tasks.models.sources import acquire
from tasks.release.autocast import F32_GAIN
from tasks.store.store import Store, store_home
from tasks.training.checkpoint import head_weight, last_hidden, load_tokenizer
from tasks.training.device import training_memory
from tasks.training.kernels import Kernels, with_kernels
from tasks.training.loop import BatchLoss, train
from tasks.training.losses import cross_entropy, mean_loss
from tasks.training.packing import PackedText, pack
from tests.benchmarks.peft_peer import example, plain_adapter, plain_trainer
from tests.benchmarks.report_file import row, write
from tests.conftest import DEMO_MODEL

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "instruct" / "sft_mix_train.jsonl"
STEPS, ROUNDS, THREADS = int(os.environ.get("STEPS", "3")), int(os.environ.get("ROUNDS", "4")), 2
SEQUENCES, TOKENS = 4, 256
LORA = LoraSettings(method="lora", rank=16, alpha=32)
F32 = TrainingSettings(
    steps=STEPS, batch_sequences=SEQUENCES, sequence_tokens=TOKENS, learning_rate=2e-4, autocast="none", checkpoint_steps=1000
)  # fmt: skip
BF16 = F32.model_copy(update={"autocast": "bf16"})


@dataclass(frozen=True)
class Contestant:
    """One way to train; `block` trains STEPS steps from number `first` on and returns real tokens a second."""

    name: str
    block: Callable[[int], float]


def main() -> None:
    """Measure and write docs/bench/train.{json,md}."""
    if not DATA.is_file():
        sys.exit("the data folder shared/data is not beside the project; this benchmark needs it")
    with tempfile.TemporaryDirectory() as folder:
        home = store_home() if "KEIRYO_HOME" in os.environ else Path(folder)
        prepare_environment(home, hub=False, threads=THREADS)
        torch.set_num_threads(THREADS)
        checkpoint = acquire(DEMO_MODEL, Store(home)).folder
        texts = training_texts(read_rows(str(DATA)), chat_template_of(checkpoint))
        contestants = _contestants(checkpoint, texts, Path(folder))
        speeds: dict[str, list[float]] = {each.name: [] for each in contestants}
        for number in range(ROUNDS):
            for each in contestants if number % 2 == 0 else reversed(contestants):
                speed = each.block(number * STEPS)
                print(f"round {number}, {each.name}: {speed:.0f} tokens/s", flush=True)
                if number:
                    speeds[each.name].append(speed)
    rows = [
        row(name, f"{SEQUENCES} x {TOKENS}, {STEPS} steps", "tokens/s", runs) for name, runs in speeds.items()
    ]
    ratios = {
        f"ours_over_{name.replace(' ', '_')}_train": _ratio(speeds["ours"], runs)
        for name, runs in speeds.items()
        if name != "ours"
    }
    print(write("train", rows, ratios).read_text(encoding="utf-8"))


def _contestants(checkpoint: Path, texts: Sequence[str], scratch: Path) -> list[Contestant]:
    tokenizer = load_tokenizer(checkpoint)
    packed = pack(texts, tokenizer, TOKENS, ROUNDS * STEPS * SEQUENCES, seed=0)
    padded = _padded(texts, tokenizer)
    rates = multiply_rates()
    fast, slow = (F32, BF16) if rates.f32_gflops > F32_GAIN * rates.bf16_gflops else (BF16, F32)
    print(f"f32 multiplies at {rates.f32_gflops:.0f} GFLOPS, bf16 at {rates.bf16_gflops:.0f}", flush=True)
    ours, other = with_adapter(checkpoint, LORA, fast), with_adapter(checkpoint, LORA, slow)
    compiled = with_adapter(checkpoint, LORA, fast)
    has_liger = torch.cuda.is_available() and find_spec("liger_kernel") is not None
    liger = with_adapter(checkpoint, LORA, fast) if has_liger else None

    def block(
        model: Any,
        text: PackedText,
        loss: BatchLoss,
        training: TrainingSettings = fast,
        kernels: Kernels = "none",
    ) -> Callable[[int], float]:
        def run(first: int) -> float:
            rows = slice(first * SEQUENCES, (first + STEPS) * SEQUENCES)
            part = PackedText(text.tokens[rows], text.positions[rows])
            with (
                tempfile.TemporaryDirectory(dir=scratch) as folder,
                training_memory() as memory,
                with_kernels(model, kernels) as ready,
            ):
                log = train(ready, part, training, loss, Path(folder), memory)
            return int((part.positions >= 0).sum()) / log.seconds

        return run

    return [
        Contestant("peft with Trainer, f32", _peer(checkpoint, padded, scratch, bf16=False)),
        Contestant("peft with Trainer, bf16", _peer(checkpoint, padded, scratch, bf16=True)),
        Contestant("ours", block(ours, packed, chunked_loss)),
        Contestant("ours without packing", block(ours, padded, chunked_loss)),
        Contestant(f"ours in {'bf16' if slow is BF16 else 'f32'}", block(other, packed, chunked_loss, slow)),
        Contestant("ours without the chunked loss", block(ours, packed, whole_loss)),
        Contestant("ours with compile", block(compiled, packed, chunked_loss, kernels="compile")),
        *(
            [Contestant("ours with liger", block(liger, packed, chunked_loss, kernels="liger"))]
            if liger
            else []
        ),
    ]


def chunked_loss(model: nn.Module, tokens_BT: Tensor, positions_BT: Tensor) -> Tensor:
    """Ours, on real tokens: padding has position -1."""
    real_N = positions_BT.flatten() >= 0
    hidden_ND = last_hidden(model, tokens_BT[:, :-1], positions_BT.clamp(min=0))[real_N]
    return mean_loss(hidden_ND, head_weight(model), cross_entropy(tokens_BT[:, 1:].flatten()[real_N]))


def whole_loss(model: nn.Module, tokens_BT: Tensor, positions_BT: Tensor) -> Tensor:
    """The same with all logits at once."""
    hidden_ND = last_hidden(model, tokens_BT[:, :-1], positions_BT)
    logits_NV = F.linear(hidden_ND, head_weight(model).to(hidden_ND.dtype)).float()
    return F.cross_entropy(logits_NV, tokens_BT[:, 1:].flatten())


def _padded(texts: Sequence[str], tokenizer: Any) -> PackedText:
    """A text a sequence, cut at TOKENS + 1, in random order; padding is EOS at position -1, which no loss counts."""
    chosen = random.Random(0).sample(list(texts), ROUNDS * STEPS * SEQUENCES)
    tokens_NT = torch.full((len(chosen), TOKENS + 1), tokenizer.eos_token_id)
    positions_NT = torch.full((len(chosen), TOKENS), -1)
    for number, text in enumerate(chosen):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][: TOKENS + 1]
        tokens_NT[number, : len(ids)] = torch.tensor(ids)
        positions_NT[number, : len(ids) - 1] = torch.arange(len(ids) - 1)
    return PackedText(tokens_NT, positions_NT)


def _peer(checkpoint: Path, padded: PackedText, scratch: Path, *, bf16: bool) -> Callable[[int], float]:
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        """From the first step's begin to the last one's end, as our own log has it."""

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.began_s = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds = time.perf_counter() - self.began_s

    model = plain_adapter(checkpoint, LORA)
    examples = [
        example(tokens_T[: int((positions_T >= 0).sum()) + 1].tolist())
        for tokens_T, positions_T in zip(padded.tokens, padded.positions, strict=True)
    ]

    def run(first: int) -> float:
        part = examples[first * SEQUENCES : (first + STEPS) * SEQUENCES]
        clock = Clock()
        trainer = plain_trainer(model, part, checkpoint, scratch, steps=STEPS, batch=SEQUENCES, bf16=bf16)
        trainer.add_callback(clock)
        trainer.train()
        return sum(len(each["input_ids"]) - 1 for each in part) / clock.seconds

    return run


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Median of the rounds' ratios, and the least and greatest of them."""
    ratios = sorted(mine / other for mine, other in zip(ours, theirs, strict=True))
    return {"median": ratios[len(ratios) // 2], "ci_low": ratios[0], "ci_high": ratios[-1]}


if __name__ == "__main__":
    main()
