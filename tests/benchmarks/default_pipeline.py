"""OpenVINO GenAI as its first example shows it: no scheduler setting, no plugin property."""

from typing import Any

import openvino_genai as genai

from tasks.engines.openvino_engine import OpenVinoEngine


class DefaultPipeline(OpenVinoEngine):
    """Our engine's way of asking, over a pipeline that nothing was set for."""

    def _served(self) -> Any:
        if self._pipeline is None:
            self._pipeline = genai.ContinuousBatchingPipeline(
                str(self._folder), genai.SchedulerConfig(), "CPU", {}
            )
        return self._pipeline
