"""The load that serving is measured under: who arrives when, how long the requests are, and what latency is owed to them."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from configs.section import Section


class SloSettings(Section):
    """The latency that is owed to a request. A request is good when it meets both limits."""

    ttft_ms: float = Field(gt=0, description="arrival to first token, the queue included, ms")
    itl_ms: float = Field(gt=0, description="mean time between a request's tokens, ms")
    attainment: float = Field(
        0.9, gt=0, le=1, description="share of good requests from which a load counts as served"
    )


class SharedPrefixSettings(Section):
    """Prompts that begin alike, as those behind one system prompt do."""

    rate: float = Field(0.0, ge=0, le=1, description="share of the requests that begin with a shared prefix")
    tokens: int = Field(
        64, ge=1, description="its length, tokens; a prompt that is no longer than that stays its own"
    )
    count: int = Field(1, ge=1, description="different prefixes, drawn evenly")


class SaturationSettings(Section):
    """The search for the highest load that still meets the SLO: doubling or halving to a bracket, then bisection."""

    tolerance: float = Field(
        0.1, gt=0, le=1, description="ends when the missed load is at most 1 + this times the met one"
    )
    probes: int = Field(8, ge=2, description="loads measured at most")


class _Load(Section):
    """What all kinds of load share."""

    requests: int = Field(64, ge=2, description="requests of one run")
    seed: int = Field(0, ge=0, description="of arrivals, lengths and places in the text")
    shared_prefix: SharedPrefixSettings = SharedPrefixSettings()
    slo: SloSettings
    repeats: int = Field(
        3, ge=1, description="runs; figures are means over them, intervals t intervals, which need 2"
    )
    saturation: SaturationSettings | None = Field(
        None, description="search the highest load that meets the SLO; null: not"
    )
    price_per_hour: float | None = Field(
        None, gt=0, description="of the machine, in any currency; null: no cost is told"
    )


class TraceLoad(_Load):
    """Open loop: arrivals and lengths of a CSV with the columns TIMESTAMP, ContextTokens and GeneratedTokens."""

    kind: Literal["trace"]
    path: str = Field(description="the CSV, relative to the working folder")
    first_row: int = Field(0, ge=0, description="rows to leave out at the beginning")
    time_scale: float = Field(1.0, gt=0, description="2: arrivals twice as fast as recorded")
    length_scale: float = Field(1.0, gt=0, description="0.1: prompts and completions a tenth as long")
    max_prompt_tokens: int = Field(
        1024, ge=1, description="longest prompt after scaling; longer ones are cut"
    )
    max_new_tokens: int = Field(
        256, ge=1, description="longest completion after scaling; longer ones are cut"
    )


class _DrawnLengths(_Load):
    """Lengths drawn evenly between two limits."""

    min_prompt_tokens: int = Field(16, ge=1, description="shortest prompt")
    max_prompt_tokens: int = Field(128, ge=1, description="longest prompt")
    min_new_tokens: int = Field(8, ge=1, description="shortest completion")
    max_new_tokens: int = Field(64, ge=1, description="longest completion")

    @model_validator(mode="after")
    def _possible(self) -> "_DrawnLengths":
        for what in ("prompt", "new"):
            low, high = (getattr(self, f"{end}_{what}_tokens") for end in ("min", "max"))
            if high < low:
                raise ValueError(
                    f"max_{what}_tokens ({high}) must not be below min_{what}_tokens ({low}); raise it"
                )
        return self


class PoissonLoad(_DrawnLengths):
    """Open loop: independent arrivals at a constant mean rate."""

    kind: Literal["poisson"]
    requests_per_s: float = Field(gt=0, description="mean arrivals a second")


class ClosedLoad(_DrawnLengths):
    """Closed loop: so many clients, each of which asks again as soon as it has its answer."""

    kind: Literal["closed"]
    concurrency: int = Field(ge=1, description="clients")


LoadSettings = Annotated[TraceLoad | PoissonLoad | ClosedLoad, Field(discriminator="kind")]
