"""Low-rank adapters of OpenVINO GenAI's continuous batching, which it holds as states of the compiled graph.

Its `generate` sets them, its `step` keeps what was set (GenAI 2026.4, openvino.genai pull requests 3677 and 3798). So an adapter is
switched by one token that nobody reads, while the pipeline is idle. A cache of prefixes or a draft model would carry
what one adapter computed over to the next, and is refused.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai

from configs.engine import EngineSettings
from tasks.engines.adapter_weights import WEIGHTS, adapter_scale
from tasks.engines.protocol import EngineUnavailable

_ANY_TOKEN = 0


def adapter_configs(settings: EngineSettings, adapters: Mapping[str, Path]) -> Mapping[str | None, Any]:
    """GenAI's configuration of each adapter, and of the base weights under None; empty where there are no adapters.

    Raises:
        EngineUnavailable: they do not go with the settings, or an adapter changes more than a product can.
    """
    if not adapters:
        return {}
    for setting, is_set in (
        ("scheduler.prefix_caching", settings.scheduler.prefix_caching),
        ("speculation", settings.speculation is not None),
    ):
        if is_set:
            raise EngineUnavailable(
                f"adapters do not go with {setting}, which keeps what another adapter computed; release without it, or the merged model"
            )
    mode = genai.AdapterConfig.Mode.MODE_DYNAMIC
    configs: dict[str | None, Any] = {None: genai.AdapterConfig(mode)}
    for name, folder in adapters.items():
        adapter = genai.Adapter(str(folder / WEIGHTS))
        configs[name] = genai.AdapterConfig(adapter, adapter_scale(folder), mode)
    return configs


def registered(configs: Mapping[str | None, Any]) -> dict[str, Any]:
    """The pipeline's property that makes room for all adapters."""
    if not configs:
        return {}
    every = genai.AdapterConfig(genai.AdapterConfig.Mode.MODE_DYNAMIC)
    for config in configs.values():
        for adapter in config.get_adapters():
            every.add(adapter, config.get_alpha(adapter))
    return {"adapters": every}


def switch_adapter(pipeline: Any, config: Any) -> None:
    """Let an idle pipeline compute with one of its configurations."""
    once = pipeline.get_config()
    once.max_new_tokens = 1
    once.do_sample = False
    once.adapters = config
    pipeline.generate([ov.Tensor(np.array([[_ANY_TOKEN]], np.int64))], [once])
