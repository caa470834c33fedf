"""Settings of speculative decoding: what drafts, and how many tokens the model checks in one pass."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from configs.section import Section
from configs.weights import WeightSettings

LARGEST_BLOCK = 16


class PromptLookup(Section):
    """Draft what followed the last few tokens where they stood before: no model, no memory (Saxena 2023, prompt lookup decoding)."""

    kind: Literal["prompt_lookup"] = "prompt_lookup"
    block_tokens: int = Field(4, ge=1, le=LARGEST_BLOCK, description="drafted tokens a round, at most")
    max_ngram_tokens: int = Field(
        3, ge=1, le=16, description="tokens that must match what stood before, at most"
    )


class DraftModel(Section):
    """Draft with a smaller model of the same tokenizer (Leviathan et al. 2023)."""

    kind: Literal["draft_model"] = "draft_model"
    draft: str = Field(pattern=r"^[0-9a-f]{64}$", description="digest of the draft's artifact, in the store")
    block_tokens: int | None = Field(
        None, ge=1, le=LARGEST_BLOCK, description="drafted tokens a round; null: min_confidence decides"
    )
    min_confidence: float | None = Field(
        None, gt=0, lt=1, description="a round's draft ends at a token that the draft holds less probable"
    )

    @model_validator(mode="after")
    def _one_rule(self) -> "DraftModel":
        if (self.block_tokens is None) == (self.min_confidence is None):
            raise ValueError(
                "a draft model drafts block_tokens a round or until min_confidence, not both and not neither; set one of them"
            )
        return self


Speculation = Annotated[PromptLookup | DraftModel, Field(discriminator="kind")]

WITHOUT_SPECULATION = {
    "transformers": "its assisted generation takes one request at a time, and this engine serves batches",
    "onnxruntime": (
        "requests are batched over slots that take one token each a step, and the Engine of onnxruntime-genai 0.18 says "
        "max_draft_tokens_per_proposal 0 of a graph for the CPU"
    ),
    "vllm": "this version does not set up its speculative_config",
}
"""Engines that do not speculate, and why."""


class DraftSearch(Section):
    """The draft model that the batching stage tries."""

    source: str = Field(
        "student",
        pattern=r"^(student|shallow|[0-9a-f]{64})$",
        description=(
            "student: of an earlier distill stage on this model where the store has one, else a shallow copy; shallow: the copy; "
            "or the digest of a checkpoint or an export in the store"
        ),
    )
    layers_fraction: float = Field(
        0.34, gt=0, lt=1, description="layers of a shallow copy: the first ones, untrained"
    )
    weights: WeightSettings = Field(WeightSettings(bits=8), description="weight format of the draft")
    probe_block_tokens: int = Field(
        4, ge=1, le=LARGEST_BLOCK, description="block length at which acceptance and cost are measured"
    )


class SpeculationSearch(Section):
    """Ways of speculation that the batching stage tries on the release at its target concurrency."""

    prompt_lookup: PromptLookup | None = Field(
        PromptLookup(),
        description="null: not tried; block_tokens is the length at which acceptance is measured",
    )
    draft: DraftSearch | None = Field(DraftSearch(), description="null: no draft model is tried")
    blocks: int = Field(4, ge=4, description="ABBA blocks of the speed ratio, two slots each")
    max_tie_nats: float = Field(
        0.25, gt=0, description="two tokens farther apart are never called a tie, however noisy the engine is"
    )

    @model_validator(mode="after")
    def _something(self) -> "SpeculationSearch":
        if self.prompt_lookup is None and self.draft is None:
            raise ValueError(
                "neither prompt_lookup nor draft is tried; give one of them, or leave speculation out"
            )
        return self
