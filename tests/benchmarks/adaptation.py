"""`make bench PART=adaptation`: what adapter training wins, against peft with transformers' Trainer on as many tokens.

Work: rank-16 LoRA on all linear layers of the demo model at a peak rate of 2e-4 without warm-up, chats of
`instruct/sft_mix_train.jsonl` under the model's template that have at most LONGEST tokens, so that neither side cuts any. The peer pads
batches of 4 chats; ours packs sequences of TOKENS, which are about as many real ones, in STEPS steps, and its second matrix learns
RATIO times as fast as the first (LoRA+; 1: as the peer); both see the same number of tokens.
Loss: nats a token over such chats of `sft_mix_valid.jsonl`, each alone, as both sides train them, computed in float32 by one function.
Intervals are over chats, paired; SEEDS trainings.
"""

import os
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import stats

from configs.training import LoraSettings, TrainingSettings
from flows.offline import prepare_environment
from tasks.adaptation.chat_template import chat_template_of
from tasks.adaptation.lora import train_adapter
from tasks.data.training_rows import read_rows, training_texts
from tasks.models.sources import acquire
from tasks.store.artifact import Artifact
from tasks.store.store import Store
from tasks.training.checkpoint import load_model, load_tokenizer
from tests.benchmarks.peft_peer import Example, example, plain_adapter, plain_trainer
from tests.benchmarks.report_file import write
from tests.conftest import DEMO_MODEL

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "instruct"
STEPS, SEEDS, THREADS = int(os.environ.get("STEPS", "53")), int(os.environ.get("SEEDS", "2")), 2
SEQUENCES, CHATS, TOKENS, LONGEST = 1, 4, 462, 240
LORA = LoraSettings(method="lora", rank=16, alpha=32)
RATIO = float(os.environ.get("RATIO", "4"))
Ids = Sequence[Sequence[int]]


def main() -> None:
    """Measure and write docs/bench/adaptation.{json,md}."""
    if not DATA.is_dir():
        sys.exit("the data folder shared/data is not beside the project; this benchmark needs it")
    with tempfile.TemporaryDirectory() as folder:
        prepare_environment(Path(folder), hub=False, threads=THREADS)
        torch.set_num_threads(THREADS)
        checkpoint = acquire(DEMO_MODEL, Store(Path(folder)))
        template, tokenizer = chat_template_of(checkpoint.folder), load_tokenizer(checkpoint.folder)
        texts, held_out = (
            [
                text
                for text in training_texts(read_rows(str(DATA / name)), template)
                if len(tokenizer(text, add_special_tokens=False)["input_ids"]) <= LONGEST
            ]
            for name in ("sft_mix_train.jsonl", "sft_mix_valid.jsonl")
        )
        chats: Ids = tokenizer(held_out, add_special_tokens=False)["input_ids"]
        before = _losses(load_model(checkpoint.folder, torch.float32), chats)
        rows, ratios = [_row("before", chats, before)], {}
        for seed in range(SEEDS):
            ours = _losses(_ours(checkpoint, texts, Path(folder), seed), chats)
            theirs = _losses(_peer(checkpoint, texts, tokenizer, Path(folder), seed), chats)
            rows += [
                _row(f"ours, seed {seed}", chats, ours),
                _row(f"peft with Trainer, seed {seed}", chats, theirs),
                _row(f"ours less the peer's, seed {seed}", chats, ours - theirs),
            ]
            ratios[f"ours_over_peft_with_Trainer_fall of the loss, seed {seed}"] = _falls(
                chats, before, ours, theirs
            )
            print(rows[-1], flush=True)
    print(write("adaptation", rows, ratios).read_text(encoding="utf-8"))


def _ours(checkpoint: Artifact, texts: Sequence[str], folder: Path, seed: int) -> Any:
    import peft

    training = TrainingSettings(
        steps=STEPS, batch_sequences=SEQUENCES, sequence_tokens=TOKENS, learning_rate=2e-4, autocast="none",
        checkpoint_steps=1000, seed=seed, warmup_fraction=0,
    )  # fmt: skip
    out = folder / f"adapter-{seed}"
    out.mkdir()
    lora = LORA.model_copy(update={"b_rate_ratio": RATIO})
    log = train_adapter(checkpoint, texts, lora, training, out, folder / f"scratch-{seed}")
    print(f"ours, seed {seed}: {log.tokens} tokens in {log.seconds:.0f} s", flush=True)
    return peft.PeftModel.from_pretrained(load_model(checkpoint.folder, torch.float32), out)


def _peer(checkpoint: Artifact, texts: Sequence[str], tokenizer: Any, folder: Path, seed: int) -> Any:
    torch.manual_seed(seed)
    examples = list(_examples(texts, tokenizer, seed))
    seen = sum(len(each["input_ids"]) - 1 for each in examples)
    steps = -(-len(examples) // CHATS)
    model = plain_adapter(checkpoint.folder, LORA)
    trainer = plain_trainer(model, examples, checkpoint.folder, folder, steps=steps, batch=CHATS, seed=seed)
    seconds = trainer.train().metrics["train_runtime"]
    print(f"peft with Trainer, seed {seed}: {seen} tokens in {steps} steps, {seconds:.0f} s", flush=True)
    return model


def _examples(texts: Sequence[str], tokenizer: Any, seed: int) -> Iterator[Example]:
    """Chats in random order until as many targets were given as ours has."""
    left = STEPS * SEQUENCES * TOKENS
    order = list(texts)
    random.Random(seed).shuffle(order)
    for text in order:
        if left <= 0:
            return
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        left -= len(ids) - 1
        yield example(ids)


@torch.inference_mode()
def _losses(model: Any, chats: Ids) -> NDArray[np.float64]:
    """Sum of the nats of each chat's tokens."""
    model.eval()
    losses = []
    for ids in chats:
        tokens_1T = torch.tensor([ids])
        logits_TV = model(input_ids=tokens_1T[:, :-1], use_cache=False).logits[0].float()
        losses.append(float(F.cross_entropy(logits_TV, tokens_1T[0, 1:], reduction="sum")))
    return np.array(losses)


def _row(name: str, chats: Ids, nats: NDArray[np.float64]) -> dict[str, object]:
    """Nats a token with the interval of a ratio of sums over chats."""
    counts = np.array([len(ids) - 1 for ids in chats])
    mean = nats.sum() / counts.sum()
    spread = (nats - mean * counts) / counts.mean()
    half = float(stats.t.isf(0.025, len(nats) - 1) * stats.sem(spread))
    work = f"{len(chats)} chats, {counts.sum()} tokens"
    return {
        "name": name,
        "work": work,
        "unit": "nats a token",
        "median": mean,
        "ci_low": mean - half,
        "ci_high": mean + half,
        "runs": nats.tolist(),
    }


def _falls(
    chats: Ids, before: NDArray[np.float64], ours: NDArray[np.float64], theirs: NDArray[np.float64]
) -> dict[str, float]:
    """Our fall of the loss over the peer's, with its interval by resampling chats."""
    generator = np.random.default_rng(0)
    drawn = generator.integers(0, len(chats), (2000, len(chats)))
    ratios = (before - ours)[drawn].sum(-1) / (before - theirs)[drawn].sum(-1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return {
        "median": float((before - ours).sum() / (before - theirs).sum()),
        "ci_low": float(low),
        "ci_high": float(high),
    }


if __name__ == "__main__":
    main()
