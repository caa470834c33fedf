"""Open an artifact for serving on the engine that the settings name; its library is imported here, not before."""

import json

from configs.engine import EngineSettings
from tasks.engines.streaming import StreamingEngine
from tasks.engines.threads import set_threads
from tasks.store.artifact import Artifact


def open_streaming(
    artifact: Artifact, settings: EngineSettings, *, sequence_tokens: int, draft: Artifact | None = None
) -> StreamingEngine:
    """Open an engine for serving, its graph compiled and its KV cache reserved.

    Args:
        artifact: sealed, of the kind that the engine loads.
        settings: the engine configuration that the release was judged under.
        sequence_tokens: the longest prompt with its completion that will be asked for; the model's own context
            and the KV cache may allow less (`StreamingEngine.sequence_tokens`).
        draft: the artifact that `settings.speculation` names, where it names one.

    Raises:
        EngineUnavailable: the engine, the setting or the artifact's kind cannot work here.
    """
    set_threads(settings.threads)
    config = json.loads((artifact.folder / "config.json").read_text(encoding="utf-8"))
    longest = min(sequence_tokens, int(config.get("max_position_embeddings", sequence_tokens)))
    match settings.engine:
        case "openvino":
            from tasks.engines.streaming_openvino import StreamingOpenVino

            return StreamingOpenVino.open(artifact, settings, sequence_tokens=longest, draft=draft)
        case "onnxruntime":
            from tasks.engines.streaming_slots import StreamingSlots

            return StreamingSlots.open(artifact, settings, sequence_tokens=longest)
        case "transformers":
            from tasks.engines.streaming_transformers import StreamingTransformers

            return StreamingTransformers.open(artifact, settings, sequence_tokens=longest)
        case "vllm":
            from tasks.engines.streaming_vllm import StreamingVllm
            from tasks.engines.vllm_process import VllmProcess

            return StreamingVllm(VllmProcess(artifact, settings, longest), settings)
