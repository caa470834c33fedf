"""transformers: the baseline of every speed-up and the reference for numerics."""

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self

import numpy as np
import torch
from transformers import AutoModelForCausalLM, DynamicCache, GenerationConfig

from configs.engine import EngineSettings
from tasks.engines.freed_memory import return_freed_memory
from tasks.engines.protocol import (
    EngineError,
    EngineMemory,
    EngineUnavailable,
    Generation,
    GenerationRequest,
    ScoreRequest,
    TokenScores,
)
from tasks.engines.target_scores import batches_by_tokens, score_logits
from tasks.engines.threads import set_threads
from tasks.store.artifact import Artifact

MAX_TARGETS = 512  # rows of logits of one scoring batch: 100 MB at a vocabulary of 49,152


class TransformersEngine:
    """One checkpoint in float32 or bfloat16 with PyTorch's own attention (sdpa)."""

    def __init__(self, model: Any, artifact: Artifact, settings: EngineSettings, batch_tokens: int) -> None:
        """Use `open`."""
        self.settings = settings
        self.vocab_size = int(model.config.vocab_size)
        self._model = model
        self._weights_bytes = sum(
            e.size_bytes for e in artifact.manifest.files if e.path.endswith(".safetensors")
        )
        self._batch_tokens = batch_tokens
        self._stop = _stop_tokens(model.generation_config)
        self._rows: torch.Tensor | None = None
        model.get_output_embeddings().register_forward_pre_hook(self._keep_rows)

    @classmethod
    def open(
        cls, artifact: Artifact, settings: EngineSettings, *, batch_tokens: int = 2048
    ) -> "TransformersEngine":
        """Load a checkpoint.

        Raises:
            EngineUnavailable: the artifact is no checkpoint, the device is not there, or the cache is not of
                the type of the arithmetic.
        """
        if artifact.kind != "checkpoint":
            raise EngineUnavailable(
                f"engine: transformers cannot load a {artifact.kind} artifact; give it the checkpoint"
            )
        if settings.kv_cache != settings.compute:
            raise EngineUnavailable(
                f"kv_cache: {settings.kv_cache} differs from compute: {settings.compute}; transformers "
                "keeps the cache in the "
                f"type of the arithmetic; use kv_cache: {settings.compute}"
            )
        if settings.device == "cuda" and not torch.cuda.is_available():
            raise EngineUnavailable(
                f"device: cuda needs an NVIDIA GPU, its driver and a CUDA build of torch; this is torch "
                f"{torch.__version__} without one; use device: cpu"
            )
        set_threads(settings.threads)
        model = AutoModelForCausalLM.from_pretrained(
            artifact.folder,
            dtype=torch.float32 if settings.compute == "f32" else torch.bfloat16,
            attn_implementation="sdpa",
        )
        return cls(model.to(settings.device).eval(), artifact, settings, batch_tokens)

    def score(self, requests: Iterable[ScoreRequest], *, with_logits: bool = False) -> Iterator[TokenScores]:
        """Score in right-padded batches; the output head runs at the targets only. See `Engine.score`."""
        for batch in batches_by_tokens(requests, batch_tokens=self._batch_tokens, max_targets=MAX_TARGETS):
            fed = [r.context + r.targets[:-1] for r in batch]
            ids_BT, mask_BT = self._padded(fed, left=False)
            width = ids_BT.shape[1]
            rows = [
                np.arange(len(r.context) - 1, len(f)) + i * width
                for i, (r, f) in enumerate(zip(batch, fed, strict=True))
            ]
            self._rows = torch.from_numpy(np.concatenate(rows)).to(self.settings.device)
            try:
                with torch.inference_mode():
                    logits_NV = self._model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits[
                        0
                    ]
            except RuntimeError as error:  # out of memory is one
                raise EngineError(f"transformers failed on {tuple(ids_BT.shape)} tokens: {error}") from error
            finally:
                self._rows = None
            begin = 0
            for request in batch:
                count = len(request.targets)
                part = logits_NV[begin : begin + count].float().cpu().numpy()
                yield score_logits(part, np.array(request.targets, np.int64), keep=with_logits)
                begin += count

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """Static batches of `scheduler.max_num_seqs`; each runs until its longest request is done."""
        began = time.perf_counter()
        size = self.settings.scheduler.max_num_seqs
        return [
            generation
            for begin in range(0, len(requests), size)
            for generation in self._generate_batch(requests[begin : begin + size], began)
        ]

    def memory(self) -> EngineMemory:
        """Weight bytes of the checkpoint; the cache grows with each request, nothing is reserved."""
        return EngineMemory(self._weights_bytes, 0)

    def close(self) -> None:
        """Release the model."""
        if self._model is not None:
            self._model = None
            return_freed_memory()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _padded(self, sequences: Sequence[Sequence[int]], *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
        ids_BT, mask_BT = _padded(sequences, left=left)
        return ids_BT.to(self.settings.device), mask_BT.to(self.settings.device)

    def _keep_rows(self, _head: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Before the output head: of hidden states (B, T, H) keep the wanted rows, as (1, N, H)."""
        if self._rows is None:
            return inputs
        hidden = inputs[0]
        return (hidden.reshape(1, -1, hidden.shape[-1])[:, self._rows], *inputs[1:])

    @torch.inference_mode()
    def _generate_batch(self, requests: Sequence[GenerationRequest], began: float) -> list[Generation]:
        ids_BT, mask_BT = self._padded([r.prompt for r in requests], left=True)
        cache = DynamicCache(config=self._model.config) if self.settings.use_kv_cache else None
        fed_BT = ids_BT
        tokens: list[list[int]] = [[] for _ in requests]
        times: list[list[float]] = [[] for _ in requests]
        running = set(range(len(requests)))
        while running:
            positions_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)[:, -fed_BT.shape[1] :]
            next_B = self._model(
                input_ids=fed_BT,
                attention_mask=mask_BT,
                position_ids=positions_BT,
                past_key_values=cache,
                use_cache=cache is not None,
                logits_to_keep=1,
            ).logits[:, -1].argmax(-1)  # fmt: skip
            picked = next_B.tolist()  # waits for the device
            now = time.perf_counter() - began
            for i in tuple(running):
                token = picked[i]
                tokens[i].append(token)
                times[i].append(now)
                ended = token in self._stop and not requests[i].ignore_eos
                if ended or len(tokens[i]) == requests[i].max_new_tokens:
                    running.discard(i)
            mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(requests), 1)], 1)
            ids_BT = torch.cat([ids_BT, next_B[:, None]], 1)
            fed_BT = ids_BT if cache is None else next_B[:, None]
        return [Generation(tuple(t), tuple(s)) for t, s in zip(tokens, times, strict=True)]


def _padded(sequences: Sequence[Sequence[int]], *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, shape (B, T), padded with token 0."""
    width = max(len(s) for s in sequences)
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        where = slice(width - len(sequence), None) if left else slice(0, len(sequence))
        ids[row, where] = torch.tensor(sequence)
        mask[row, where] = 1
    return ids, mask


def _stop_tokens(config: GenerationConfig) -> frozenset[int]:
    eos = config.eos_token_id
    return frozenset([eos] if isinstance(eos, int) else eos or [])
