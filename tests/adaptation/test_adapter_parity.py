"""The adapter beside the weights, merged and exported: alike where all is well, an error where one of them is another model."""

from pathlib import Path

import pytest
from tiny_llama import TEXTS, tiny_llama

from configs.engine import EngineName
from configs.load import load_config
from configs.training import LoraSettings, TrainingSettings
from tasks.adaptation.adapter_parity import check_adapter
from tasks.adaptation.lora import merge_adapter, train_adapter
from tasks.release.preparation import make_workspace
from tasks.release.workspace import Workspace
from tasks.store.artifact import Artifact
from tasks.training.error import TrainingError

CONFIG = """
name: parity
model: {{name: tiny, source: {{kind: folder, path: {model}}}}}
quality: {{margins: {{accuracy: null}}, text: {{section_characters: 300, search_sections: 8}}}}
quantize: {{candidates: [{{engine: openvino, weights: {{bits: 8}}}}]}}
"""
TRAINING = TrainingSettings(
    steps=6, batch_sequences=2, sequence_tokens=32, learning_rate=1e-2, autocast="none"
)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("KEIRYO_HOME", str(tmp_path / "store"))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(CONFIG.format(model=tiny_llama(tmp_path / "model").folder))
    return make_workspace(load_config(recipe))


def trained(workspace: Workspace, scratch: Path, method: str) -> tuple[Artifact, Artifact]:
    lora = LoraSettings.model_validate({"method": method, "rank": 4, "alpha": 8})
    adapter = workspace.store.seal(
        lambda out: train_adapter(workspace.source, TEXTS, lora, TRAINING, out, scratch), kind="adapter"
    )
    merged = workspace.store.seal(
        lambda out: merge_adapter(workspace.source, adapter.folder, out), kind="checkpoint"
    )
    return adapter, merged


@pytest.mark.parametrize(
    ("method", "engine"),
    [
        ("lora", "openvino"),
        ("qlora", "openvino"),
        ("dora", "openvino"),
        ("lora", "onnxruntime"),
        ("lora", "transformers"),
    ],
)
def test_all_forms_agree(method: str, engine: EngineName, workspace: Workspace, tmp_path: Path) -> None:
    adapter, merged = trained(workspace, tmp_path / "scratch", method)
    parity = check_adapter(workspace, adapter, merged, engine)
    assert 0 <= parity.merged_kl_nats < 1e-6
    assert 0 <= parity.exported_kl_nats < 1e-6
    assert parity.merged_flip_rate == parity.exported_flip_rate == 0
    assert parity.metrics["quality/adapter_parity/merged_kl_nats"] == parity.merged_kl_nats


def test_another_adapter_than_the_merged_one_is_an_error(workspace: Workspace, tmp_path: Path) -> None:
    adapter, _ = trained(workspace, tmp_path / "scratch", "lora")
    with pytest.raises(TrainingError, match="adapter parity: KL of the merged checkpoint to the"):
        check_adapter(workspace, adapter, workspace.source, "openvino")
