"""What training takes is told before anything runs, and refused where it does not fit."""

from pathlib import Path

import pytest
from tiny_llama import tiny_llama

from configs.load import ConfigError, load_config
from configs.schema import Config
from tasks.adaptation.lora import with_adapter
from tasks.profiling.grid_memory import TORCH_BYTES
from tasks.profiling.training_memory import trained_scales
from tasks.release.plan import make_plan
from tasks.release.preparation import make_workspace
from tasks.training.memory_saving import predicted_mib

CONFIG = """
name: needs
model: {{name: tiny, source: {{kind: folder, path: {model}}}}}
quality: {{margins: {{accuracy: 0.2}}, tasks: {{names: [keiryo_minimal_pairs], items: 200}}, text: {{section_characters: 300}}}}
quantize: {{candidates: [{{engine: openvino, weights: {{bits: 8}}}}]}}
adapt:
  data: text
  methods: [{{method: lora, rank: 4}}, {{method: dora, rank: 4}}]
  training: {{steps: 2, batch_sequences: 2, sequence_tokens: 32, autocast: none}}
  max_memory_mib: {limit}
"""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KEIRYO_HOME", str(tmp_path / "store"))
    return tiny_llama(tmp_path / "model").folder


def config(model: Path, limit: object) -> Config:
    recipe = model.parent / "recipe.yaml"
    recipe.write_text(CONFIG.format(model=model, limit=limit))
    return load_config(recipe)


def test_the_plan_names_what_every_adapter_takes(model: Path) -> None:
    settings = config(model, "null")
    assert settings.adapt is not None
    needs = make_plan(make_workspace(settings)).training
    assert [(need.method, need.arithmetic, need.saving) for need in needs] == [
        ("lora", "f32", "none"),
        ("dora", "f32", "none"),
    ]
    for need, lora in zip(needs, settings.adapt.methods, strict=True):
        built = with_adapter(model, lora, settings.adapt.training)
        assert need.trained_parameters == sum(p.numel() for p in built.parameters() if p.requires_grad)
    assert 0 < needs[0].peak_mib < needs[1].peak_mib


def test_a_limit_that_nothing_fits_into_is_refused_before_anything_runs(model: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"adapt.methods.0: adapt.max_memory_mib is 1: lora on 2 x 32 tokens takes"
    ):
        make_workspace(config(model, 1))


RECOVERY = """
name: needs
model: {{name: tiny, source: {{kind: folder, path: {model}}}}}
quality: {{margins: {{accuracy: 0.2}}, tasks: {{names: [keiryo_minimal_pairs], items: 200}}, text: {{section_characters: 300}}}}
quantize: {{candidates: {candidates}}}
adapt:
  recovery: {{steps: 2, batch_sequences: 2, sequence_tokens: 32, autocast: none}}
  max_memory_mib: {limit}
"""
EIGHT = "{engine: onnxruntime, weights: {bits: 8, group_size: 32}}"
TO_NEAREST = "{engine: openvino, weights: {bits: 4, group_size: 16, embedding_bits: 32}}"
BY_GPTQ = "{engine: openvino, weights: {bits: 4, group_size: 32, calibration: gptq}}"
QUANTILES = "{engine: openvino, weights: {bits: 4, number: nf4, group_size: 32}}"


def recovering(model: Path, candidates: list[str], limit: object = "null") -> Config:
    recipe = model.parent / "recipe.yaml"
    recipe.write_text(RECOVERY.format(model=model, candidates=f"[{', '.join(candidates)}]", limit=limit))
    return load_config(recipe)


@pytest.mark.parametrize(
    ("candidates", "labels", "group_size"),
    [
        ([EIGHT, TO_NEAREST, QUANTILES], ["GPTQ before recovery", "recovery"], 16),
        ([BY_GPTQ], ["recovery"], 32),
        ([QUANTILES], [], 0),
    ],
)
def test_the_plan_names_what_recovery_takes(
    model: Path, candidates: list[str], labels: list[str], group_size: int
) -> None:
    workspace = make_workspace(recovering(model, candidates))
    needs = make_plan(workspace).training
    assert [need.method for need in needs] == labels
    if needs:
        scales, training = trained_scales(workspace.architecture, group_size), workspace.config.adapt.recovery
        assert needs[-1].trained_parameters == scales.count
        assert needs[-1].peak_mib == predicted_mib(workspace.architecture, training, scales, "none")
    if len(needs) == 2:
        assert needs[0].peak_mib > TORCH_BYTES / 2**20  # beside the checkpoint and what a backward pass keeps


def test_recovery_that_does_not_fit_is_refused_before_anything_runs(model: Path) -> None:
    with pytest.raises(ConfigError, match=r"adapt.recovery: adapt.max_memory_mib is 1: recovery on 2 x 32"):
        make_workspace(recovering(model, [TO_NEAREST], 1))
