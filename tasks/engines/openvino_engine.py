"""OpenVINO: scoring on the served graph, generation by GenAI's continuous batching.

Both are compiled on first use, with the same plugin properties, each set explicitly: the plugin's own
defaults on a processor with AVX512-BF16 are bf16 compute, a u8 cache and activations quantized in groups of
32.
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import openvino as ov
import openvino_genai as genai

from configs.engine import EngineSettings
from configs.speculation import DraftModel, PromptLookup
from tasks.engines.cache_shape import read_cache_shape
from tasks.engines.draft import check_draft
from tasks.engines.freed_memory import return_freed_memory
from tasks.engines.openvino_adapters import adapter_configs, registered, switch_adapter
from tasks.engines.paged_scoring import PagedScorer, last_line
from tasks.engines.protocol import (
    EngineError,
    EngineMemory,
    EngineUnavailable,
    Generation,
    GenerationRequest,
    ScoreRequest,
    TokenScores,
)
from tasks.engines.threads import openvino_threads
from tasks.store.artifact import Artifact

BLOCK_TOKENS = 32  # of the CPU plugin's paged attention
_ELEMENT_BITS = {"f32": 32, "bf16": 16, "f16": 16, "u8": 8, "u4": 4}


class OpenVinoEngine:
    """One IR with one set of plugin properties."""

    def __init__(
        self,
        artifact: Artifact,
        settings: EngineSettings,
        *,
        draft: Artifact | None,
        adapters: Mapping[str | None, Any],
        chunk_tokens: int,
        batch_tokens: int,
    ) -> None:
        """Use `open`, which checks the artifacts first."""
        self.settings = settings
        self._adapters = adapters
        self._draft = draft
        self._folder = artifact.folder
        self._chunk_tokens = chunk_tokens
        self._batch_tokens = batch_tokens
        self.vocab_size = int(json.loads((artifact.folder / "config.json").read_text())["vocab_size"])
        self._scorer: PagedScorer | None = None
        self._pipeline: Any = None
        self._sent = 0
        self._closed = False

    @classmethod
    def open(
        cls,
        artifact: Artifact,
        settings: EngineSettings,
        *,
        draft: Artifact | None = None,
        adapters: Mapping[str, Path] = {},
        chunk_tokens: int = 64,
        batch_tokens: int = 2048,
    ) -> "OpenVinoEngine":
        """Open an exported artifact.

        Args:
            artifact: of kind "openvino".
            settings: the engine configuration.
            draft: the artifact that `settings.speculation` names, where it names one.
            adapters: folders of adapters that `use_adapter` may name; they act on generation, not on scoring.
            chunk_tokens: tokens of a sequence fed at once while scoring; 0: all.
            batch_tokens: tokens of one scoring batch.

        Raises:
            EngineUnavailable: the artifact is of another kind, the draft does not fit it, adapters do not go with
                the settings, or this processor lacks what the settings need.
        """
        if artifact.kind != "openvino":
            raise EngineUnavailable(
                f"engine: openvino cannot load a {artifact.kind} artifact; export it first"
            )
        able = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if settings.compute == "bf16" and "BF16" not in able:
            raise EngineUnavailable(
                f"compute: bf16 needs AVX512-BF16 or AMX; this processor has {', '.join(able)}; use "
                "compute: f32"
            )
        draft = check_draft(artifact, settings, draft)
        return cls(
            artifact,
            settings,
            draft=draft,
            adapters=adapter_configs(settings, adapters),
            chunk_tokens=chunk_tokens,
            batch_tokens=batch_tokens,
        )

    @property
    def properties(self) -> dict[str, Any]:
        """Plugin properties, the same for scoring and serving."""
        return {
            "INFERENCE_PRECISION_HINT": self.settings.compute,
            "KV_CACHE_PRECISION": self.settings.kv_cache,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": self.settings.activation_group,
            **openvino_threads(self.settings.own_threads),
        }

    def score(self, requests: Iterable[ScoreRequest], *, with_logits: bool = False) -> Iterator[TokenScores]:
        """Score through paged attention with the served KV-cache type; see `Engine.score`."""
        self._check_open()
        if self._scorer is None:
            self._scorer = PagedScorer(
                self._folder / "openvino_model.xml",
                self.properties,
                self.settings.kv_cache,
                chunk_tokens=self._chunk_tokens,
                batch_tokens=self._batch_tokens,
            )
        return self._scorer.score(requests, with_logits=with_logits)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """Complete all by continuous batching; a token's time is the end of the step that made it.

        With speculation a step is a round: the tokens that it accepts have one time.
        """
        pipeline = self._served()
        began = time.perf_counter()
        handles = []
        for request in requests:
            prompt = ov.Tensor(np.array([request.prompt], np.int64))
            handles.append(pipeline.add_request(self._sent, prompt, self._greedy(request)))
            self._sent += 1
        tokens: list[list[int]] = [[] for _ in requests]
        times: list[list[float]] = [[] for _ in requests]
        while pipeline.has_non_finished_requests():
            try:
                pipeline.step()
            except RuntimeError as error:
                raise EngineError(f"OpenVINO failed while generating: {error}") from error
            now = time.perf_counter() - began
            for i, handle in enumerate(handles):
                if handle.can_read():
                    for output in handle.read().values():  # none of a request that was dropped
                        tokens[i] += output.generated_ids
                        times[i] += [now] * len(output.generated_ids)
        for request, handle, made in zip(requests, handles, tokens, strict=True):
            self._check(request, handle, made)
        return [Generation(tuple(t), tuple(s)) for t, s in zip(tokens, times, strict=True)]

    def use_adapter(self, name: str | None) -> None:
        """Generate with an adapter from now on, or without one; nothing may be running.

        Raises:
            EngineError: OpenVINO failed.
        """
        try:
            switch_adapter(self._served(), self._adapters[name])
        except RuntimeError as error:
            raise EngineError(f"OpenVINO failed to take adapter {name}: {error}") from error

    def memory(self) -> EngineMemory:
        """Weight bytes of the IR, and the KV blocks of the pipeline and the scorer, as far as they exist; a draft's are added."""
        folders = [self._folder] if self._draft is None else [self._folder, self._draft.folder]
        block_bytes = sum(_block_bytes(folder, self.settings.kv_cache) for folder in folders)
        reserved = self.cache_blocks * block_bytes if self._pipeline is not None else 0
        scoring = self._scorer.cache_bytes if self._scorer is not None else 0
        weights = sum((folder / "openvino_model.bin").stat().st_size for folder in folders)
        return EngineMemory(weights, reserved + scoring)

    def close(self) -> None:
        """Release both graphs."""
        if not self._closed:
            self._closed = True
            self._scorer = self._pipeline = None
            return_freed_memory()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def block_bytes(self) -> int:
        """Bytes of one KV block."""
        return _block_bytes(self._folder, self.settings.kv_cache)

    @property
    def cache_blocks(self) -> int:
        """KV blocks that `scheduler.cache_mib` holds; a draft model has as many of its own, which are smaller."""
        return max(1, self.settings.scheduler.cache_mib * 2**20 // self.block_bytes)

    def _served(self) -> Any:
        self._check_open()
        if self._pipeline is None:
            try:
                self._pipeline = genai.ContinuousBatchingPipeline(
                    str(self._folder),
                    self._scheduler(),
                    "CPU",
                    self.properties | self._drafting() | registered(self._adapters),
                )
            except RuntimeError as error:
                raise EngineUnavailable(
                    f"OpenVINO GenAI refuses {self.properties} with {self.settings.scheduler}: {last_line(error)}; "
                    "choose another kv_cache, compute or scheduler"
                ) from error
            if self._adapters:  # it begins with all of them together
                self.use_adapter(None)
        return self._pipeline

    def _scheduler(self) -> Any:
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = 0  # whole GiB only; blocks are exact
        scheduler.num_kv_blocks = self.cache_blocks
        scheduler.max_num_seqs = self.settings.scheduler.max_num_seqs
        scheduler.max_num_batched_tokens = self.settings.scheduler.max_num_batched_tokens
        scheduler.enable_prefix_caching = self.settings.scheduler.prefix_caching
        scheduler.dynamic_split_fuse = self.settings.scheduler.split_prefill
        return scheduler

    def _drafting(self) -> dict[str, Any]:
        """Pipeline properties of the configured speculation."""
        match self.settings.speculation:
            case PromptLookup():
                return {"prompt_lookup": True}
            case DraftModel() if self._draft is not None:
                # With a scheduler of its own: GenAI would divide the target's blocks between the two.
                drafts = genai.draft_model(
                    str(self._draft.folder), "CPU", scheduler_config=self._scheduler(), **self.properties
                )
                return {"draft_model": drafts}
            case _:
                return {}

    def speculate(self, config: Any) -> None:
        """Set the round of the configured speculation in a request's generation config."""
        match self.settings.speculation:
            case PromptLookup(block_tokens=block, max_ngram_tokens=ngram):
                config.num_assistant_tokens, config.max_ngram_size = block, ngram
            case DraftModel(block_tokens=None, min_confidence=float(confidence)):
                config.assistant_confidence_threshold = confidence
            case DraftModel(block_tokens=int(block)):
                config.num_assistant_tokens = block

    def _greedy(self, request: GenerationRequest) -> Any:
        config = self._pipeline.get_config()
        config.do_sample = False
        config.max_new_tokens = request.max_new_tokens
        config.ignore_eos = request.ignore_eos
        if request.ignore_eos:
            config.stop_token_ids = set()
        self.speculate(config)
        return config

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("the engine is closed")

    def _check(self, request: GenerationRequest, handle: Any, made: Sequence[int]) -> None:
        if handle.get_status() == genai.GenerationStatus.IGNORED or not made:
            raise EngineError(
                f"OpenVINO dropped a request of {len(request.prompt)} + {request.max_new_tokens} tokens: "
                "it does not fit the "
                f"KV cache; raise scheduler.cache_mib ({self.settings.scheduler.cache_mib})"
            )
        short = request.ignore_eos and len(made) != request.max_new_tokens
        if short or len(made) > request.max_new_tokens:
            raise EngineError(
                f"OpenVINO returned {len(made)} tokens where {request.max_new_tokens} were asked for"
            )


def _block_bytes(folder: Path, kv_cache: str) -> int:
    """Bytes of one KV block of a model; quantized types add two f32 to each key channel and each value row."""
    layers, kv_heads, head_dim = read_cache_shape(folder)
    scales = 8 * (head_dim + BLOCK_TOKENS) if kv_cache in ("u8", "u4") else 0
    values = 2 * BLOCK_TOKENS * head_dim * _ELEMENT_BITS[kv_cache] // 8
    return layers * kv_heads * (values + scales)
