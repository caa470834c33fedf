"""LoftQ: training starts nearer to the full-precision model, and what is written is an adapter for that model."""

from pathlib import Path

import peft
import pytest
import torch
from tiny_llama import TEXTS, tiny_llama

from configs.training import LoraSettings, TrainingSettings
from tasks.adaptation.loftq import start_at_repair, take_out_repair
from tasks.adaptation.lora import merge_adapter, train_adapter, with_adapter
from tasks.store.artifact import Artifact
from tasks.training.checkpoint import load_model

TRAINING = TrainingSettings(
    steps=6, batch_sequences=2, sequence_tokens=32, learning_rate=1e-2, autocast="none"
)
LOFTQ = LoraSettings(method="qlora", init="loftq", rank=8, alpha=16)
IDS = torch.arange(2, 40)[None]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return tiny_llama(tmp_path_factory.mktemp("tiny"))


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS.to(model.device)).logits.cpu()  # bitsandbytes loads onto a GPU


def test_the_repair_brings_the_rounded_base_nearer_to_the_source(tiny: Artifact) -> None:
    source = logits(load_model(tiny.folder, torch.float32))
    rounded = (logits(with_adapter(tiny.folder, LOFTQ, TRAINING)) - source).square().mean()
    model = with_adapter(tiny.folder, LOFTQ, TRAINING)
    start_at_repair(model, tiny.folder)
    repaired = (logits(model) - source).square().mean()
    assert repaired < 0.7 * rounded


def test_taken_out_again_an_untrained_adapter_says_nothing(tiny: Artifact, tmp_path: Path) -> None:
    model = with_adapter(tiny.folder, LOFTQ, TRAINING)
    take_out_repair(model, start_at_repair(model, tiny.folder))
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    base = load_model(tiny.folder, torch.float32)
    before = logits(base)
    torch.testing.assert_close(
        logits(peft.PeftModel.from_pretrained(base, tmp_path)), before, atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("stabilized", [False, True])
def test_trained_and_merged_it_says_what_base_and_adapter_say(
    stabilized: bool, tiny: Artifact, tmp_path: Path
) -> None:
    lora = LOFTQ.model_copy(update={"rank_stabilized": stabilized})
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    adapter.mkdir()
    log = train_adapter(tiny, TEXTS, lora, TRAINING, adapter, tmp_path / "scratch")
    merge_adapter(tiny, adapter, merged)
    assert log.losses[-1] < log.losses[0]
    base = load_model(tiny.folder, torch.float32)
    before = logits(base)
    unmerged = logits(peft.PeftModel.from_pretrained(base, adapter))
    assert (unmerged - before).abs().max() > 0.05
    torch.testing.assert_close(logits(load_model(merged, torch.float32)), unmerged, atol=1e-4, rtol=0)


def test_loftq_goes_with_qlora() -> None:
    with pytest.raises(ValueError, match="init: loftq repairs what NF4 lost; it goes with method: qlora"):
        LoraSettings(method="lora", init="loftq")
