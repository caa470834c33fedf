"""From a checkpoint to served artifacts of calibrated grids: the same weights in every engine, within the budget."""

import json

import numpy as np
import pytest
from served_logits import logits_of, sealed
from tiny_llama import TEXTS, tiny_llama

from configs.weights import WeightSettings
from tasks.compression import output_feedback
from tasks.compression.build import build_artifact, resolve_weights
from tasks.compression.error import CompressionError
from tasks.compression.openvino_matrices import MODEL_XML, weight_formats
from tasks.store.artifact import Artifact
from tasks.store.store import Store

FOUR = WeightSettings(bits=4, group_size=32, calibration="gptq")


@pytest.fixture(scope="module")
def checkpoint(home: Store, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    model = tiny_llama(tmp_path_factory.mktemp("tiny") / "model")
    return sealed(home, model)


def test_both_engines_compute_with_the_same_grids(home, checkpoint):
    weights = FOUR.model_copy(update={"embedding_bits": 32})
    served = {
        engine: logits_of(build_artifact(home, checkpoint, engine, weights, TEXTS), engine)
        for engine in ("openvino", "onnxruntime")
    }
    source = logits_of(build_artifact(home, checkpoint, "openvino", WeightSettings(), ()), "openvino")
    lost = np.abs(served["openvino"] - source).mean()
    # ONNX Runtime's kernel rounds activations to int8, which moves logits, but far less than rounding the weights did.
    assert np.abs(served["openvino"] - served["onnxruntime"]).mean() < 0.5 * lost
    assert lost > 1e-3


def test_a_budget_of_bytes_is_used_and_kept(home, checkpoint):
    weights = FOUR.model_copy(update={"max_bytes_fraction": 0.23})
    resolved = resolve_weights(home, checkpoint, "openvino", weights, TEXTS)
    assert 0 < len(resolved.int8_layers) < 21
    assert resolved.max_bytes_fraction is None
    artifact = build_artifact(home, checkpoint, "openvino", resolved, TEXTS)
    formats = weight_formats(artifact.folder)
    assert formats.matrices["i8"] >= len(resolved.int8_layers)
    parameters = sum(formats.elements.values())
    stored = (artifact.folder / MODEL_XML).with_suffix(".bin").stat().st_size
    assert stored <= 0.24 * 4 * parameters  # the file holds a few constants of the graph, too
    plain = build_artifact(home, checkpoint, "openvino", FOUR, TEXTS)
    source = logits_of(build_artifact(home, checkpoint, "openvino", WeightSettings(), ()), "openvino")
    kept, all_four = (np.abs(logits_of(each, "openvino") - source).mean() for each in (artifact, plain))
    assert kept < all_four


def test_output_feedback_rounds_otherwise_within_the_same_budget(home, checkpoint, monkeypatch):
    """After GPTQ without it in the same store: what is shared by formats has no pairs of outputs then."""
    monkeypatch.setattr(output_feedback, "_BLOCK_OUTPUTS", 16)  # the layers are narrow
    plain = FOUR.model_copy(update={"max_bytes_fraction": 0.23})
    made = []
    for weights in (plain, plain.model_copy(update={"output_feedback": True})):
        resolved = resolve_weights(home, checkpoint, "openvino", weights, TEXTS)
        assert resolved.output_feedback == weights.output_feedback
        assert resolved.int8_layers
        made.append(build_artifact(home, checkpoint, "openvino", resolved, TEXTS))
    assert made[0].digest != made[1].digest
    stored = [(each.folder / MODEL_XML).with_suffix(".bin").stat().st_size for each in made]
    assert abs(stored[0] - stored[1]) < 0.02 * stored[0]
    logits = [logits_of(each, "openvino") for each in made]
    assert np.abs(logits[0] - logits[1]).max() > 1e-3


def test_what_rounding_loses_is_known_by_layer(home, checkpoint):
    resolved = resolve_weights(
        home, checkpoint, "openvino", FOUR.model_copy(update={"max_rounding_nats": 1e-9}), TEXTS
    )
    assert len(resolved.int8_layers) == 21  # nothing less would do
    errors = [json.loads(path.read_text()) for path in home.home.rglob("layer_errors.json")]
    assert all(value > 0 for each in errors for value in each.values())


def test_impossible_budgets_and_unknown_layers_are_refused(home, checkpoint):
    with pytest.raises(CompressionError, match=r"4 bits everywhere take 0\.161"):
        resolve_weights(
            home, checkpoint, "openvino", FOUR.model_copy(update={"max_bytes_fraction": 0.1}), TEXTS
        )
    named = FOUR.model_copy(update={"int8_layers": ("model.layers.9.mlp.up_proj",)})
    with pytest.raises(
        CompressionError, match=r"model\.layers\.9\.mlp\.up_proj; the model has no such linear layer"
    ):
        build_artifact(home, checkpoint, "openvino", named, TEXTS)
    with pytest.raises(CompressionError, match="needs at least 256"):
        build_artifact(home, checkpoint, "openvino", FOUR, TEXTS[:2])
    with pytest.raises(ValueError, match="each say what stays at 8 bits"):
        WeightSettings(bits=4, calibration="gptq", max_bytes_fraction=0.2, int8_layers=("x",))
