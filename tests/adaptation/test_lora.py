from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from tiny_llama import TEXTS, as_artifact, tiny_llama

from configs.training import LoraSettings, TrainingSettings
from tasks.adaptation.lora import merge_adapter, train_adapter
from tasks.models.checkpoint import read_architecture
from tasks.profiling.training_memory import lora_parameters
from tasks.store.artifact import Artifact
from tasks.training.checkpoint import load_model, load_tokenizer
from tasks.training.error import TrainingError

TRAINING = TrainingSettings(
    steps=6, batch_sequences=2, sequence_tokens=32, learning_rate=1e-2, autocast="none"
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    checkpoint = tiny_llama(tmp_path_factory.mktemp("tiny"))
    (checkpoint.folder / "manifest.json").write_text("{}")  # a sealed artifact has one; no copy may
    return checkpoint


def logits(model: torch.nn.Module, tokenizer: object) -> torch.Tensor:
    ids = torch.tensor([tokenizer("the keys are on the table")["input_ids"]])  # type: ignore[operator]
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


@pytest.mark.parametrize("method", ["lora", "qlora", "dora"])
def test_trained_merged_and_loaded_again_it_says_what_base_and_adapter_say(
    method: str, tiny: Artifact, tmp_path: Path
) -> None:
    lora = LoraSettings.model_validate({"method": method, "rank": 4, "alpha": 8})
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    adapter.mkdir()
    log = train_adapter(tiny, TEXTS, lora, TRAINING, adapter, tmp_path / "scratch")
    merge_adapter(tiny, adapter, merged)

    assert not (tmp_path / "scratch").exists()
    assert log.losses[-1] < log.losses[0]
    assert log.trainable_parameters == lora_parameters(read_architecture(tiny), lora)
    assert {file.name for file in adapter.iterdir()} == {"adapter_model.safetensors", "adapter_config.json"}
    assert str(tiny.folder) not in (adapter / "adapter_config.json").read_text()
    assert {file.name for file in merged.iterdir()} == {file.name for file in tiny.folder.iterdir()} - {
        "manifest.json"
    }

    tokenizer = load_tokenizer(merged)
    base = load_model(tiny.folder, torch.float32)
    before = logits(base, tokenizer)
    unmerged = logits(peft.PeftModel.from_pretrained(base, adapter), tokenizer)
    assert (unmerged - before).abs().max() > 0.05  # the adapter does something
    torch.testing.assert_close(
        logits(load_model(merged, torch.float32), tokenizer), unmerged, atol=1e-4, rtol=0
    )


def test_the_second_matrix_learns_faster_by_its_ratio(tiny: Artifact, tmp_path: Path) -> None:
    """AdamW's first step moves every value by its rate; the first matrix has no gradient yet, because the second is zero."""
    one_step = TRAINING.model_copy(update={"steps": 1, "warmup_fraction": 0.0})
    moved = {}
    for ratio in (1.0, 8.0):
        adapter = tmp_path / f"adapter-{ratio:g}"
        adapter.mkdir()
        lora = LoraSettings(method="lora", rank=4, alpha=8, b_rate_ratio=ratio)
        log = train_adapter(tiny, TEXTS, lora, one_step, adapter, tmp_path / "scratch")
        assert log.learning_rates == (TRAINING.learning_rate,)
        weights = load_file(adapter / "adapter_model.safetensors")
        moved[ratio] = max(weight.abs().max().item() for name, weight in weights.items() if "lora_B" in name)
    assert moved[1.0] == pytest.approx(TRAINING.learning_rate, rel=1e-3)
    assert moved[8.0] == pytest.approx(8 * TRAINING.learning_rate, rel=1e-3)


def test_the_merged_checkpoint_keeps_the_dtype_of_its_base(tiny: Artifact, tmp_path: Path) -> None:
    half = tmp_path / "half"
    load_model(tiny.folder, torch.bfloat16).save_pretrained(half)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (half / name).write_bytes((tiny.folder / name).read_bytes())
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    adapter.mkdir()
    lora = LoraSettings(method="lora", rank=2, target_modules=("v_proj",))
    train_adapter(as_artifact(half), TEXTS, lora, TRAINING, adapter, tmp_path / "scratch")
    merge_adapter(as_artifact(half), adapter, merged)

    assert {p.dtype for p in load_model(merged, "auto").parameters()} == {torch.bfloat16}


def test_unknown_targets_are_named(tiny: Artifact, tmp_path: Path) -> None:
    for target, message in (("wqkv", r"names \['wqkv'\].*'q_proj'"), ("lm_head", "leave it out")):
        lora = LoraSettings(method="lora", target_modules=("q_proj", target))
        with pytest.raises(TrainingError, match=message):
            train_adapter(tiny, TEXTS, lora, TRAINING, tmp_path, tmp_path / "scratch")
