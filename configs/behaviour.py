"""Behaviour beyond accuracy: rule-based checks of answers, a language model as judge, and human spot checks."""

import re
from ipaddress import ip_address
from typing import Annotated, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import Field, field_validator, model_validator

from configs.engine import EngineSettings
from configs.model import ModelSettings
from configs.section import Section


class BehaviourMargins(Section):
    """How far the answers may drift from the source model's. A margin left out is reported, not gated."""

    max_refusal_drift: float | None = Field(
        None, gt=0, lt=1, description="share of prompts refused more, or less, than by the source"
    )
    max_repetition_drift: float | None = Field(
        None, gt=0, lt=1, description="share of prompts answered in a loop more often than by the source"
    )
    max_length_drift_fraction: float | None = Field(
        None,
        gt=0,
        description="geometric mean length may change by this factor - 1 (0.1: at most x 1.1, at least / 1.1)",
    )
    max_format_loss: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of format prompts whose format is kept less often; the 64 embedded ones decide about 0.2",
    )


class SpotCheckSettings(Section):
    """Blinded pairs for a person, and how long the person's decision stands."""

    pairs: int = Field(12, ge=1, description="pairs shown: the items that changed most")
    max_valid_days: int = Field(90, ge=1, description="a decision must expire within this many days")
    seed: int = Field(0, ge=0, description="which side of a pair the candidate is on")


class BehaviourSettings(Section):
    """Both models answer the same prompts greedily; rules without a model look at each answer."""

    prompts: str = Field(
        "embedded",
        description="'embedded' (128 generated instructions), or a JSONL file: 'prompt' or 'messages' a line",
    )
    max_new_tokens: int = Field(48, ge=4, description="longest answer, tokens")
    repetition_ngram: int = Field(4, ge=1, description="tokens of the n-grams whose repeats are counted")
    repeated_share: float = Field(
        0.5, gt=0, lt=1, description="an answer with more repeated n-grams than this counts as repetitive"
    )
    refusal_patterns: tuple[str, ...] = Field(
        (), description="regular expressions of refusals beside the English and Japanese ones built in"
    )
    margins: BehaviourMargins = BehaviourMargins()
    alpha: float = Field(0.05, gt=0, lt=0.5, description="one-sided error rate of a PASS")
    spot_check: SpotCheckSettings = SpotCheckSettings()

    @field_validator("refusal_patterns")
    @classmethod
    def _compiles(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"refusal_patterns: {pattern!r} is no regular expression: {error}"
                ) from error
        return patterns


class EndpointJudge(Section):
    """A model behind an OpenAI-compatible chat endpoint."""

    kind: Literal["endpoint"]
    base_url: str = Field(description="the part before /chat/completions, as https://host/v1")
    model: str = Field(min_length=1, description="model name, as the endpoint knows it")
    family: str | None = Field(
        None, description="family of the judge where the model's name does not say it (llama, qwen, gpt, ...)"
    )
    api_key_env: str | None = Field(
        None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="environment variable with the API key"
    )
    timeout_s: float = Field(60, gt=0, description="of one request")
    retries: int = Field(
        4, ge=0, description="further attempts after HTTP 429, 5xx, a time-out or a lost connection"
    )
    backoff_s: float = Field(
        1.0, gt=0, description="first pause between attempts; doubled each time, at most 60"
    )
    parallel: int = Field(4, ge=1, description="requests in flight")
    max_new_tokens: int = Field(64, ge=1, description="longest reply")
    allow_plain_http: bool = Field(False, description="send prompts and key unencrypted to another machine")

    @field_validator("base_url")
    @classmethod
    def _an_address(cls, base_url: str) -> str:
        url = urlsplit(base_url)
        if url.scheme not in ("http", "https") or not url.hostname or url.query or url.fragment:
            raise ValueError(
                f"base_url: {base_url!r} must be http(s)://host[:port]/path and nothing behind it"
            )
        if "@" in url.netloc:
            raise ValueError("base_url: an address with a user or password is refused; use api_key_env")
        return base_url.rstrip("/")

    @model_validator(mode="after")
    def _encrypted(self) -> "EndpointJudge":
        url = urlsplit(self.base_url)
        if url.scheme != "https" and not is_loopback(url) and not self.allow_plain_http:
            raise ValueError(
                f"base_url: {self.base_url} is neither https nor loopback; use https, or allow_plain_http: true"
            )
        return self


class LocalJudge(Section):
    """A model on an engine of this machine."""

    kind: Literal["local"]
    model: ModelSettings | None = Field(
        None, description="the judge; null: the source model, which is of its own family and never votes"
    )
    engine: EngineSettings = Field(EngineSettings(engine="openvino"), description="what the judge runs on")
    family: str | None = Field(None, description="family of the judge where its name does not say it")
    max_new_tokens: int = Field(8, ge=1, description="longest reply, tokens")


RUBRIC = """\
Compare two answers to the same request.
The better answer does what the request asks, is correct, is complete and readable, and keeps to the format asked for.
Length alone is no merit. An answer that breaks off, repeats itself, is scrambled or belongs to another request is worse.
If neither is better, it is a tie."""


class Calibration(Section):
    """What a judge must show on the day's prompts before it has a vote; each by the limit of its interval."""

    probes: int = Field(48, ge=4, description="source answers against a corrupted copy of themselves")
    min_probe_rate: float = Field(
        0.8, gt=0, lt=1, description="share of probes that the corrupted answer loses in both orders"
    )
    identical: int = Field(64, ge=4, description="source answers against themselves")
    max_position_bias: float = Field(
        0.3, gt=0, lt=1, description="|share preferring A - share preferring B| between identical answers"
    )
    min_position_consistency: float = Field(
        0.6, gt=0, lt=1, description="share of the judged pairs with one answer in both orders"
    )
    human_labels: str | None = Field(
        None, description="JSONL file of pairs labelled by people: prompt, answer_a, answer_b, label"
    )
    min_kappa: float = Field(0.4, gt=0, lt=1, description="Cohen's kappa of the judge with the human labels")
    alpha: float = Field(0.05, gt=0, lt=0.5, description="one-sided level of each limit")


Provider = Annotated[EndpointJudge | LocalJudge, Field(discriminator="kind")]


class JudgeSettings(Section):
    """A language model that compares the answers of both models, if it earns a vote."""

    provider: Provider = Field(description="who judges")
    rubric: str = Field(RUBRIC, min_length=1, description="what makes an answer better, in the judge's words")
    calibration: Calibration = Calibration()
    max_loss_rate_margin: float = Field(
        0.1, gt=0, lt=1, description="share of prompts lost minus share won that the candidate may have"
    )
    alpha: float = Field(0.05, gt=0, lt=0.5, description="one-sided error rate of a PASS")
    seed: int = Field(0, ge=0, description="which prompts are probed, and how answers are corrupted")


def is_loopback(url: SplitResult) -> bool:
    """Whether an address stays on this machine."""
    if url.hostname == "localhost":
        return True
    try:
        return ip_address(url.hostname or "").is_loopback
    except ValueError:
        return False
