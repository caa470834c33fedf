"""The child's part of engine: vllm: it runs in vLLM's environment, by its own path, and imports nothing of Keiryo.

It holds one `LLMEngine`, the core that `vllm serve` runs, and does what the other end of a socket says. A message is a line of JSON; an
answer is one, too, and may be followed by as many bytes as its key `bytes` says. Nothing is pickled.

    {"do": "open", ...}      -> {"vocab_size", "version", "device"}
    {"do": "submit", ...}    -> {}
    {"do": "cancel", "id"}   -> {}
    {"do": "step"}           -> {"progress": [[id, [token, ...], end or null], ...], "busy"}
    {"do": "score", ...}     -> {"targets": [T, ...]} and log-probabilities, is_argmax and, if asked, log-probabilities of all tokens

An answer {"error": ...} ends the process: nothing of it can be trusted after that.
"""

import json
import os
import socket
import sys
from array import array
from typing import Any

Message = dict[str, Any]
Answer = tuple[Message, bytes]

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = (
    "0"  # the engine in this process: one process to measure and to stop
)
os.environ["VLLM_LOGGING_LEVEL"] = "WARNING"


class Worker:
    """One engine and the requests that run on it."""

    def __init__(self) -> None:
        """Nothing is open yet."""
        self._engine: Any = None
        self._told: dict[str, int] = {}  # tokens that were reported, by request

    def open(self, message: Message) -> Answer:
        """Load the model and reserve the cache."""
        import torch
        import vllm
        from vllm import EngineArgs, LLMEngine
        from vllm.platforms import current_platform

        self._engine = LLMEngine.from_engine_args(EngineArgs(**message["arguments"]))
        config = self._engine.vllm_config.model_config
        return {
            "vocab_size": config.get_vocab_size(),
            "version": vllm.__version__,
            "device": current_platform.device_type,
            "torch": torch.__version__,
        }, b""

    def submit(self, message: Message) -> Answer:
        """Queue one completion."""
        self._add(
            message["id"],
            message["prompt"],
            max_tokens=message["max_new_tokens"],
            ignore_eos=message["ignore_eos"],
            stop_token_ids=message["stop"],
            temperature=message["temperature"],
            top_p=message["top_p"],
            seed=message["seed"],
        )
        self._told[str(message["id"])] = 0
        return {}, b""

    def cancel(self, message: Message) -> Answer:
        """Give a request up."""
        if self._told.pop(str(message["id"]), None) is not None:
            self._engine.abort_request([str(message["id"])])
        return {}, b""

    def step(self, _message: Message) -> Answer:
        """One step of the scheduler."""
        progress = []
        for output in self._engine.step():
            tokens = list(output.outputs[0].token_ids)
            new = tokens[self._told[output.request_id] :]
            self._told[output.request_id] = len(tokens)
            end = output.outputs[0].finish_reason if output.finished else None
            if output.finished:
                del self._told[output.request_id]
            progress.append([int(output.request_id), new, end])
        return {"progress": progress, "busy": self._engine.has_unfinished_requests()}, b""

    def score(self, message: Message) -> Answer:
        """Log-probabilities of targets after their contexts; the cache is written and read as in serving."""
        whole = message["with_logits"]
        for number, (context, targets) in enumerate(message["requests"]):
            self._add(
                f"score-{number}",
                context + targets,
                max_tokens=1,
                temperature=0.0,
                prompt_logprobs=-1 if whole else 1,
                flat_logprobs=True,
            )
        found = {}
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                if output.finished:
                    found[output.request_id] = output.prompt_logprobs
        logprobs, is_argmax, rows = array("f"), bytearray(), bytearray()
        for number, (context, targets) in enumerate(message["requests"]):
            flat = found[f"score-{number}"]
            for position, target in enumerate(targets, start=len(context)):
                # The target comes first, then the tokens by rank, the most probable one in front.
                begin, end = flat.start_indices[position], flat.end_indices[position]
                if flat.token_ids[begin] != target:
                    raise RuntimeError(
                        f"position {position} holds token {flat.token_ids[begin]}, not {target}"
                    )
                logprobs.append(flat.logprobs[begin])
                is_argmax.append(flat.token_ids[begin + 1] == target)
                if whole:
                    rows += _by_token(flat.token_ids[begin + 1 : end], flat.logprobs[begin + 1 : end])
        sizes = [len(targets) for _, targets in message["requests"]]
        return {"targets": sizes}, logprobs.tobytes() + bytes(is_argmax) + bytes(rows)

    def _add(self, name: object, prompt: list[int], **sampling: Any) -> None:
        from vllm import SamplingParams

        params = SamplingParams(detokenize=False, **sampling)
        self._engine.add_request(str(name), {"prompt_token_ids": prompt}, params)


def _by_token(tokens: list[int], logprobs: list[float]) -> bytes:
    """float32 log-probabilities in the order of the token ids, as bytes."""
    import numpy

    row = numpy.full(len(tokens), numpy.nan, numpy.float32)
    row[numpy.asarray(tokens)] = logprobs
    return row.tobytes()


def main() -> None:
    """Answer until the other end closes the socket."""
    stream = socket.socket(fileno=int(sys.argv[1])).makefile("rwb")
    worker = Worker()
    for line in stream:
        message = json.loads(line)
        try:
            answer, payload = getattr(worker, message["do"])(message)
        except Exception as error:  # reported to the other end, which raises it
            answer, payload = {"error": f"{type(error).__name__}: {error}"}, b""
        stream.write(json.dumps(answer | {"bytes": len(payload)}).encode() + b"\n" + payload)
        stream.flush()
        if "error" in answer:
            sys.exit(1)


if __name__ == "__main__":
    main()
