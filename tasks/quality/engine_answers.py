"""What an engine says of texts: asked once, kept in the log, with a record of what was asked about which item."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from tasks.engines.protocol import Engine, GenerationRequest, ScoreRequest
from tasks.quality.item_rows import Asked
from tasks.quality.quality_error import QualityError
from tasks.quality.score_log import ScoreLog, request_key
from tasks.quality.shared_context import score_likelihoods
from tasks.quality.tokenizer import TextTokenizer

DEFAULT_NEW_TOKENS = 256  # lm-eval's, for tasks that set no max_gen_toks


class EngineAnswers:
    """Log-likelihoods and completions of one engine; a longer text loses its beginning."""

    def __init__(self, engine: Engine, tokenizer: TextTokenizer, max_tokens: int, log: ScoreLog) -> None:
        """`max_tokens` is the model's context; `log` holds the answers of this engine alone."""
        self.text, self.max_tokens = tokenizer, max_tokens
        self._engine, self._log = engine, log
        self._asked: defaultdict[int, list[tuple[str, int]]] = defaultdict(list)

    def asked(self, item: int) -> Asked:
        """What was asked about an item so far, in the order of the requests."""
        requests = self._asked[item]
        return Asked(tuple(key for key, _ in requests), sum(targets for _, targets in requests))

    def request(self, context: Sequence[int], targets: Sequence[int]) -> ScoreRequest:
        """At most max_tokens tokens are fed: the last target is never an input.

        Raises:
            QualityError: no target, or more than the context.
        """
        if not targets or len(targets) > self.max_tokens:
            raise QualityError(
                f"a continuation has {len(targets)} tokens; this model takes 1 to {self.max_tokens}"
            )
        kept = context[-(self.max_tokens + 1 - len(targets)) :]
        return ScoreRequest(tuple(kept), tuple(targets))

    def likelihoods(self, requests: Sequence[ScoreRequest], items: Sequence[int]) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, whether every target is the most probable token) of each request.

        Args:
            requests: may repeat.
            items: the item that each request is about.

        Raises:
            QualityError, EngineError: the engine failed, or gave a number that is not finite.
        """
        keys = {request: request_key("score", request.context, request.targets) for request in requests}
        for item, request in zip(items, requests, strict=True):
            self._asked[item].append((keys[request], len(request.targets)))
        missing = [request for request, key in keys.items() if self._log.get(key) is None]
        for found in score_likelihoods(self._engine, missing):
            self._log.put(keys[found.request], [found.logprob, found.is_greedy])
        return [(float(a[0]), bool(a[1])) for a in (self._log.get(keys[r]) for r in requests)]  # type: ignore[index]

    def completions(
        self, prompts: Sequence[str], settings: Sequence[Mapping[str, Any]], items: Sequence[int]
    ) -> list[str]:
        """Greedy completions in the engine's own batches, cut at the first stop string.

        A stop string does not end the generation early: engines stop at EOS and at max_gen_toks.

        Args:
            prompts: texts.
            settings: lm-eval's generation_kwargs of each: until, max_gen_toks, do_sample, temperature.
            items: the item that each prompt is about.

        Raises:
            QualityError: the settings ask for sampling, or leave no room for a prompt.
            EngineError: the engine failed.
        """
        requests = [self._generation(text, kwargs) for text, kwargs in zip(prompts, settings, strict=True)]
        keys = [request_key("generate", r.prompt, r.max_new_tokens) for r in requests]
        for item, key in zip(items, keys, strict=True):
            self._asked[item].append((key, 0))
        missing = {
            key: request for key, request in zip(keys, requests, strict=True) if self._log.get(key) is None
        }
        todo = sorted(missing.items(), key=lambda pair: (pair[1].max_new_tokens, len(pair[1].prompt)))
        step = 4 * self._engine.settings.scheduler.max_num_seqs  # what a kill may lose
        for start in range(0, len(todo), step):
            batch = todo[start : start + step]
            for (key, _), done in zip(batch, self._engine.generate([r for _, r in batch]), strict=True):
                self._log.put(key, list(done.tokens))
        return [self._cut(key, kwargs) for key, kwargs in zip(keys, settings, strict=True)]

    def _generation(self, prompt: str, settings: Mapping[str, Any]) -> GenerationRequest:
        if settings.get("do_sample") and settings.get("temperature", 1.0):
            raise QualityError(
                f"generation_kwargs {dict(settings)} samples; only greedy decoding is reproducible"
            )
        new_tokens = int(settings.get("max_gen_toks", DEFAULT_NEW_TOKENS))
        if not 0 < new_tokens < self.max_tokens:
            raise QualityError(
                f"max_gen_toks {new_tokens} leaves no room for a prompt in this model's {self.max_tokens} tokens"
            )
        tokens = self.text.encode(prompt)[-(self.max_tokens - new_tokens) :]
        return GenerationRequest(tuple(tokens or [self.text.prefix_id]), new_tokens)

    def _cut(self, key: str, settings: Mapping[str, Any]) -> str:
        text = self.text.decode(self._log.get(key))  # type: ignore[arg-type]
        until = settings.get("until") or []
        for stop in filter(None, [until] if isinstance(until, str) else until):
            text = text.split(stop)[0]
        return text
