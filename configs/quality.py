"""Quality: the items, the margins and the error rates of the gate."""

from typing import Literal

from pydantic import Field, field_validator

from configs.engine import EngineSettings
from configs.section import Section

REFERENCE = EngineSettings(engine="openvino", compute="f32", kv_cache="f32")


class TextSettings(Section):
    """Text for perplexity, KL, calibration and adaptation, split into disjoint parts by topic."""

    source: str = Field(
        "pydoc",
        description="'pydoc' (the reference topics of this Python), or a JSONL file with a field 'text' a line",
    )
    section_characters: int = Field(
        600, ge=100, le=4000, description="largest section; about 4 characters make a token"
    )
    gate_sections: int = Field(
        64, ge=60, description="sections the gate judges on; they are the clusters of its test"
    )
    search_sections: int = Field(
        12, ge=1, description="sections that choose among candidates; never judged on"
    )
    calibration_sections: int = Field(48, ge=1, description="sections for calibration")


class TaskSettings(Section):
    """Accuracy tasks, as lm-eval names them."""

    pack: str | None = Field(
        "embedded",
        description="'embedded' (generated, offline), a folder of lm-eval task YAMLs, or null: lm-eval's own tasks (hub)",
    )
    names: tuple[str, ...] = Field(
        ("keiryo_last_word", "keiryo_minimal_pairs", "keiryo_world_facts"), min_length=1
    )

    @field_validator("names")
    @classmethod
    def _own_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if "text" in names:
            raise ValueError(
                "a task cannot be called text, which names perplexity and KL; rename it in its YAML"
            )
        return names

    items: int = Field(
        1500,
        ge=1,
        description="items a task may draw in all, over every look; a task with fewer ends with all it has",
    )


class SequentialSettings(Section):
    """How often an accuracy task may be judged while its items are drawn; the error rates hold for all looks together."""

    kind: Literal["obrien-fleming", "planned", "confidence-sequence", "none"] = Field(
        "planned",
        description=(
            "'planned': alpha spending that takes the fewest expected items and keeps the wanted power, chosen from the "
            "settings before any data; 'obrien-fleming': alpha spending near the power of one look; "
            "'confidence-sequence': valid at any look without approximation, needs about twice the items and "
            "independent ones; 'none': one look"
        ),
    )
    looks: int = Field(8, ge=1, le=20, description="looks at most; the last is at all items")
    futility_power: float | None = Field(
        0.1,
        gt=0,
        lt=0.5,
        description=(
            "stop INCONCLUSIVE where the chance of a PASS at the last look is below this, even if the rest of "
            "the items were drawn from an equal model; null: draw on"
        ),
    )


class Margins(Section):
    """How much quality may be lost against the source model. A margin left out is not gated."""

    perplexity_fraction: float | None = Field(0.02, gt=0, description="perplexity may grow by this fraction")
    kl_nats: float | None = Field(
        0.02, gt=0, description="mean KL divergence from the reference, nats a token"
    )
    accuracy: float | None = Field(
        0.03, gt=0, lt=1, description="accuracy may fall by this fraction of the items"
    )


class QualitySettings(Section):
    """What PASS means."""

    text: TextSettings = TextSettings()
    tasks: TaskSettings = TaskSettings()
    sequential: SequentialSettings = SequentialSettings()
    margins: Margins = Margins()
    alpha: float = Field(0.05, gt=0, lt=0.5, description="one-sided error rate of a PASS, over all tries")
    power: float = Field(
        0.8, gt=0, lt=1, description="wanted chance that an equal candidate passes (planning)"
    )
    discordance: float = Field(
        0.05, gt=0, lt=1, description="expected share of items whose answer changes (planning)"
    )
    tries: int = Field(
        3, ge=1, description="candidates that may be judged on the gate items; each at alpha / tries"
    )
    reference: EngineSettings = Field(
        REFERENCE, description="how the source model is scored: full precision on a fast engine"
    )
    score_chunk_tokens: int = Field(
        64, ge=1, description="tokens fed at once while scoring, so that a quantized KV cache is read back"
    )
    batch_tokens: int = Field(2048, ge=64, description="tokens of one scoring batch, padding included")
    seed: int = Field(0, ge=0, description="order in which items are drawn")

    def judged(self, kind: Literal["preserve", "tasks"]) -> Margins:
        """The margins that apply: a stage that must preserve the function, or one that may change it (tasks only)."""
        return (
            self.margins
            if kind == "preserve"
            else Margins(perplexity_fraction=None, kl_nats=None, accuracy=self.margins.accuracy)
        )
