"""The card says what was trained on what, in a form that the hub and peft read."""

from configs.training import LoraSettings, TrainingSettings
from configs.weights import WeightSettings
from tasks.adaptation.model_card import model_card
from tasks.store.digest import digest_of
from tasks.training.log import TrainingLog

LOG = TrainingLog(
    steps=4, tokens=512, seconds=1.0, tokens_per_s=512.0, losses=(3.5, 3.0, 2.75, 2.5), learning_rates=(1.0,) * 4, peak_mib=9.0,
    trainable_parameters=77, held_out_losses={0: 3.6, 4: 2.9}, kept_step=4,
)  # fmt: skip


TEXTS = ["one", "two", "three"]
LORA = LoraSettings(method="dora", rank=8, target_modules=r".*\.(q|v)_proj")
INT4 = WeightSettings(bits=4, symmetric=False, group_size=64, calibration="gptq")


def card(trained: LoraSettings | WeightSettings = LORA, **changes: object) -> str:
    return model_card(
        "tiny",
        "a" * 64,
        "rows.jsonl",
        TEXTS,
        trained=trained,
        training=TrainingSettings(steps=4, autocast="none"),
        log=LOG.model_copy(update=changes),
    )


def test_the_front_matter_is_what_the_hub_reads() -> None:
    from huggingface_hub import ModelCard

    data = ModelCard(card()).data
    assert (data.base_model, data.library_name, data.pipeline_tag) == ("tiny", "peft", "text-generation")
    assert data.tags == ["dora", "keiryo"]


def test_data_base_settings_and_losses_are_named() -> None:
    text = card()
    for part in (
        "a" * 64, "rows.jsonl: 3 documents", digest_of(TEXTS), "rank 8", 'autocast "none"', "4 steps, 512 tokens, 77 parameters",
        "3.5000 to 2.5000 nats", "3.6000 after 0, 2.9000 after 4 steps; the state after 4 was kept", r".(q\|v)_proj",
    ):  # fmt: skip
        assert part in text
    assert "ended early" not in text


def test_an_early_end_is_told_and_no_held_out_text_is_no_row() -> None:
    assert "| ended early | the loss rose |" in card(stopped="the loss rose")
    assert "held-out" not in card(held_out_losses={})


def test_recovered_scales_have_a_card_of_their_own() -> None:
    from huggingface_hub import ModelCard

    text = card(INT4)
    assert ModelCard(text).data.tags == ["recovery", "keiryo"]
    assert "library_name" not in text
    for part in ("# int4 asym g64 gptq with trained scales, of tiny", "grids trained from | `" + "a" * 64, "group_size 64",
                 "divergence in training | 3.5000 to 2.5000 nats", "77 parameters"):  # fmt: skip
        assert part in text
