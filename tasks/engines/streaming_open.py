"""Open an artifact for serving on the engine that the settings name; its library is imported here, not before."""

import json
from collections.abc import Mapping
from pathlib import Path

from configs.engine import EngineName, EngineSettings
from tasks.engines.adapter_turns import AdapterTurns
from tasks.engines.protocol import EngineUnavailable
from tasks.engines.streaming import StreamingEngine
from tasks.engines.threads import set_threads
from tasks.store.artifact import Artifact

SWITCHING: tuple[EngineName, ...] = ("openvino", "onnxruntime")


def open_streaming(
    artifact: Artifact,
    settings: EngineSettings,
    *,
    sequence_tokens: int,
    draft: Artifact | None = None,
    adapters: Mapping[str, Path] = {},
) -> StreamingEngine:
    """Open an engine for serving, its graph compiled and its KV cache reserved.

    Args:
        artifact: sealed, of the kind that the engine loads.
        settings: the engine configuration that the release was judged under.
        sequence_tokens: the longest prompt with its completion that will be asked for; the model's own context
            and the KV cache may allow less (`StreamingEngine.sequence_tokens`).
        draft: the artifact that `settings.speculation` names, where it names one.
        adapters: folders of adapters by the name under which requests ask for one; they take turns (adapter_turns.py).

    Raises:
        EngineUnavailable: the engine, the setting or the artifact's kind cannot work here.
    """
    if adapters and settings.engine not in SWITCHING:
        raise EngineUnavailable(
            f"engine: {settings.engine} is not opened with adapters; serve on {' or '.join(SWITCHING)}, or the merged model"
        )
    set_threads(settings.threads)
    config = json.loads((artifact.folder / "config.json").read_text(encoding="utf-8"))
    longest = min(sequence_tokens, int(config.get("max_position_embeddings", sequence_tokens)))
    match settings.engine:
        case "openvino":
            from tasks.engines.streaming_openvino import StreamingOpenVino

            pipeline = StreamingOpenVino.open(
                artifact, settings, sequence_tokens=longest, draft=draft, adapters=adapters
            )
            return AdapterTurns(pipeline) if adapters else pipeline
        case "onnxruntime":
            from tasks.engines.streaming_slots import StreamingSlots

            slots = StreamingSlots.open(artifact, settings, sequence_tokens=longest, adapters=adapters)
            return AdapterTurns(slots) if adapters else slots
        case "transformers":
            from tasks.engines.streaming_transformers import StreamingTransformers

            return StreamingTransformers.open(artifact, settings, sequence_tokens=longest)
        case "vllm":
            from tasks.engines.streaming_vllm import StreamingVllm
            from tasks.engines.vllm_process import VllmProcess

            return StreamingVllm(VllmProcess(artifact, settings, longest), settings)
