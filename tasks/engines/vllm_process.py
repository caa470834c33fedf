"""vLLM's engine in a child process of vLLM's own environment, and the conversation with it (`vllm_worker.py` is its other end)."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from configs.engine import EngineSettings
from tasks.engines.protocol import EngineError, EngineUnavailable
from tasks.engines.vllm_arguments import engine_arguments, process_environment
from tasks.engines.vllm_environment import vllm_python
from tasks.store.artifact import Artifact

_WORKER = Path(__file__).with_name("vllm_worker.py")
_ANSWER_S = 900  # a first step may compile kernels
_STOP_S = 20
_SCORING = {"skip_tokenizer_init": True, "max_logprobs": -1, "disable_log_stats": True}


class VllmProcess:
    """A running worker with its engine open."""

    def __init__(
        self, artifact: Artifact, settings: EngineSettings, sequence_tokens: int | None = None
    ) -> None:
        """Start the process and load the artifact.

        Args:
            artifact: of kind "checkpoint" or "vllm".
            settings: the engine configuration.
            sequence_tokens: see `engine_arguments`.

        Raises:
            EngineUnavailable: there is no vLLM, or it refuses the artifact or the settings.
        """
        if artifact.kind not in ("checkpoint", "vllm"):
            raise EngineUnavailable(f"engine: vllm cannot load a {artifact.kind} artifact; build it for vllm")
        arguments = engine_arguments(artifact.folder, settings, sequence_tokens) | _SCORING
        python = vllm_python()
        self.sequence_tokens = int(arguments["max_model_len"])
        self.stop = _stop_tokens(artifact.folder)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # closed by close()
        ours, theirs = socket.socketpair()
        ours.settimeout(_ANSWER_S)
        with theirs:
            self._process = subprocess.Popen(
                [python, "-I", _WORKER, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | process_environment(settings.own_threads),
            )
        self._socket, self._stream = ours, ours.makefile("rwb")
        try:
            opened, _ = self.ask("open", arguments=arguments)
        except EngineError as error:
            raise EngineUnavailable(f"vLLM does not open {artifact.folder.name}: {error}") from error
        self.vocab_size, self.version = int(opened["vocab_size"]), str(opened["version"])
        if opened["device"] != settings.device:
            self.close()
            raise EngineUnavailable(
                f"device: {settings.device}, but the vLLM in {python} computes on {opened['device']}; set device: "
                f"{opened['device']}, or use another vLLM"
            )

    def ask(self, what: str, **message: Any) -> tuple[dict[str, Any], bytes]:
        """Have one thing done.

        Raises:
            EngineError: vLLM failed, or the process has ended.
        """
        if self._stream.closed:
            raise EngineError(f"vLLM failed ({what}): its process has ended")
        try:
            self._stream.write(json.dumps({"do": what} | message).encode() + b"\n")
            self._stream.flush()
            line = self._stream.readline()
            answer: dict[str, Any] = (
                json.loads(line) if line else {"error": f"its process ended: {self._last()}"}
            )
            payload = self._stream.read(answer.get("bytes", 0))
        except (OSError, ValueError) as error:
            answer, payload = {"error": f"no answer from its process ({error}): {self._last()}"}, b""
        if "error" in answer:
            self.close()
            raise EngineError(f"vLLM failed ({what}): {answer['error']}")
        return answer, payload

    def close(self) -> None:
        """End the process; safe to call twice."""
        with contextlib.suppress(OSError):  # what was not sent to a process that has ended
            self._stream.close()
        self._socket.close()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._log.close()

    def _last(self) -> str:
        """The last line that the process wrote."""
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it wrote nothing"


def _stop_tokens(folder: Path) -> list[int]:
    """EOS ids of the checkpoint; vLLM reads none of them without a tokenizer."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        found = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
        if found is not None:
            return found if isinstance(found, list) else [found]
    return []
