"""A plain torch engine, the reference for what scoring must return, and a tiny model for it."""

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from configs.engine import EngineSettings
from tasks.engines.protocol import (
    EngineMemory,
    Generation,
    GenerationRequest,
    ScoreRequest,
    TokenScores,
)


class TorchEngine:
    """The protocol over a transformers model: no cache, right padding, no tricks."""

    def __init__(self, folder: Path, batch_sequences: int = 32) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(2)
        self.settings = EngineSettings(engine="transformers")
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.vocab_size = self.model.config.vocab_size
        self.batch_sequences = batch_sequences
        self.tokens_fed = 0
        self.requests_seen = 0

    def score(self, requests: Iterable[ScoreRequest], *, with_logits: bool = False) -> Iterator[TokenScores]:
        import torch

        stream = iter(requests)
        while batch := list(islice(stream, self.batch_sequences)):
            fed = [torch.tensor((r.context + r.targets)[:-1]) for r in batch]
            padded = torch.nn.utils.rnn.pad_sequence(fed, batch_first=True)
            mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(x) for x in fed], batch_first=True)
            with torch.inference_mode():
                logits_BTV = self.model(padded, attention_mask=mask).logits.float()
            for request, length, logits in zip(batch, map(len, fed), logits_BTV, strict=True):
                self.requests_seen += 1
                self.tokens_fed += length
                rows = logits[length - len(request.targets) : length]
                targets = torch.tensor(request.targets)
                logprobs = rows.log_softmax(-1).gather(1, targets[:, None])[:, 0]
                yield TokenScores(
                    logprobs=logprobs.numpy(),
                    is_argmax=(rows.argmax(-1) == targets).numpy(),
                    logits=rows.numpy().copy() if with_logits else None,
                )

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        done = []
        for request in requests:
            tokens: list[int] = []
            began_s = time.perf_counter()
            times: list[float] = []
            while len(tokens) < request.max_new_tokens:
                probe = ScoreRequest(request.prompt + tuple(tokens), (0,))
                logits = next(self.score([probe], with_logits=True)).logits
                tokens.append(int(np.argmax(logits[0])))
                times.append(time.perf_counter() - began_s)
            done.append(Generation(tuple(tokens), tuple(times)))
        return done

    def memory(self) -> EngineMemory:
        return EngineMemory(0, 0)

    def close(self) -> None:
        pass


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama with a byte-level tokenizer of 300 tokens that adds no BOS by itself."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(
        ["the keys to the cabinet are on the table and the other one is not"], trainer
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"})
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, bos_token_id=0,
        eos_token_id=1, initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_engine(tiny_checkpoint: Path) -> TorchEngine:
    return TorchEngine(tiny_checkpoint)


@pytest.fixture(scope="session")
def torch_engine() -> type[TorchEngine]:
    """The class, for tests that open other checkpoints."""
    return TorchEngine
