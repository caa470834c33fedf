"""Open an artifact on the engine that the settings name; its library is imported here, not before."""

import importlib

from configs.engine import EngineName, EngineSettings
from tasks.engines.protocol import Engine
from tasks.engines.threads import set_threads
from tasks.store.artifact import Artifact

_MODULES: dict[EngineName, str] = {
    "transformers": "tasks.engines.transformers_engine",
    "openvino": "tasks.engines.openvino_engine",
    "onnxruntime": "tasks.engines.onnxruntime_engine",
}


def import_engine(settings: EngineSettings) -> None:
    """Import the engine's library ahead of a memory measurement: its code, or its context on a GPU, is not the candidate's."""
    if settings.engine in _MODULES:
        importlib.import_module(_MODULES[settings.engine])
    if settings.engine == "transformers" and settings.device == "cuda":
        import torch

        if torch.cuda.is_available():
            torch.zeros(1, device="cuda")


def open_engine(
    artifact: Artifact,
    settings: EngineSettings,
    *,
    draft: Artifact | None = None,
    chunk_tokens: int = 64,
    batch_tokens: int = 2048,
) -> Engine:
    """Open an engine; close it when done.

    Args:
        artifact: sealed, of the kind that the engine loads.
        settings: the engine configuration.
        draft: the artifact that `settings.speculation` names, where it names one.
        chunk_tokens: tokens of a sequence fed at once while scoring, so that a quantized KV cache is read
            back; 0: all.
        batch_tokens: tokens of one scoring batch, padding included.

    Raises:
        EngineUnavailable: the engine, the setting or the artifact's kind cannot work here.
    """
    set_threads(settings.threads)
    match settings.engine:
        case "transformers":
            from tasks.engines.transformers_engine import TransformersEngine

            return TransformersEngine.open(artifact, settings, batch_tokens=batch_tokens)
        case "openvino":
            from tasks.engines.openvino_engine import OpenVinoEngine

            return OpenVinoEngine.open(
                artifact, settings, draft=draft, chunk_tokens=chunk_tokens, batch_tokens=batch_tokens
            )
        case "onnxruntime":
            from tasks.engines.onnxruntime_engine import OnnxRuntimeEngine

            return OnnxRuntimeEngine.open(
                artifact, settings, chunk_tokens=chunk_tokens, batch_tokens=batch_tokens
            )
        case "vllm":
            from tasks.engines.vllm_engine import VllmEngine

            return VllmEngine.open(artifact, settings, batch_tokens=batch_tokens)
