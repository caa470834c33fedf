"""Packed checkpoints for vLLM: the grids' very weights, read back by the published format, and by the public library where it is."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_llama import TEXTS, tiny_llama

from configs.space import WeightCandidate
from configs.weights import WeightSettings
from tasks.compression.build import build_artifact
from tasks.compression.error import CompressionError
from tasks.compression.grid import load_grids
from tasks.compression.vllm import build_vllm, pack_codes
from tasks.models.checkpoint import read_architecture
from tasks.profiling.weight_memory import weight_bytes
from tasks.store.artifact import Artifact
from tasks.store.store import Store

INT4 = WeightSettings(bits=4, group_size=32, embedding_bits=16)
INT8 = WeightSettings(bits=8, embedding_bits=32)
W8A8 = WeightSettings(bits=8, embedding_bits=16, activations="int8_dynamic")
GPTQ = INT4.model_copy(update={"calibration": "gptq"})


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def checkpoint(home: Store, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    model = tiny_llama(tmp_path_factory.mktemp("tiny") / "model", layers=2)

    def copy(out: Path) -> None:
        for file in model.folder.iterdir():
            shutil.copyfile(file, out / file.name)

    return home.seal(copy, kind="checkpoint")


def unpacked(folder: Path) -> dict[str, torch.Tensor]:
    """Weights as the published format says: fields of `num_bits` from the lowest bit of each word, less the middle, times the scale."""
    scheme = json.loads((folder / "config.json").read_text())["quantization_config"]["config_groups"][
        "group_0"
    ]["weights"]
    bits = scheme["num_bits"]
    tensors, weights = load_file(folder / "model.safetensors"), {}
    for name, words in tensors.items():
        if words.dtype == torch.int8:
            layer = name.removesuffix(".weight")
            weights[layer] = words.float() * tensors[f"{layer}.weight_scale"].float()
        if not name.endswith(".weight_packed"):
            continue
        layer = name.removesuffix(".weight_packed")
        outputs, inputs = tensors[f"{layer}.weight_shape"].tolist()
        fields = (words.to(torch.int64)[..., None] >> (torch.arange(32 // bits) * bits)) & (2**bits - 1)
        codes = fields.reshape(outputs, -1)[:, :inputs] - 2 ** (bits - 1)
        scale = tensors[f"{layer}.weight_scale"].float()
        weights[layer] = codes.float() * scale.repeat_interleave(inputs // scale.shape[1], dim=1)
    return weights


@pytest.mark.parametrize(
    ("weights", "error"), [(INT4, 0.2), (INT8, 0.02), (W8A8, 0.02)], ids=["w4a16", "w8a16", "w8a8"]
)
def test_every_linear_layer_is_packed_and_close_to_what_it_was(home, checkpoint, weights, error):
    built = build_artifact(home, checkpoint, "vllm", weights, ())
    assert built.kind == "vllm"
    assert built.manifest.parent == checkpoint.digest
    before, after = load_file(checkpoint.folder / "model.safetensors"), unpacked(built.folder)
    linear = {name.removesuffix(".weight") for name in before if ".layers." in name and "proj" in name}
    assert set(after) == linear
    assert len(linear) == 14
    for layer, weight in after.items():
        origin = before[f"{layer}.weight"]
        assert (weight - origin).abs().mean() < error * origin.abs().mean()
    stored = load_file(built.folder / "model.safetensors")
    table = stored["model.embed_tokens.weight"]
    assert table.dtype == (torch.float16 if weights.embedding_bits == 16 else torch.float32)
    assert torch.equal(stored["model.norm.weight"], before["model.norm.weight"])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (built.folder / name).read_bytes() == (checkpoint.folder / name).read_bytes()


def test_calibrated_grids_are_served_to_the_bit(home, checkpoint):
    built = build_artifact(home, checkpoint, "vllm", GPTQ, TEXTS)
    grids = load_grids(home.open(built.manifest.data["grids"]).folder)
    after = unpacked(built.folder)
    assert set(after) == set(grids)
    for layer, grid in grids.items():
        assert np.array_equal(after[layer].numpy(), grid.weights())
    plain = unpacked(build_artifact(home, checkpoint, "vllm", INT4, ()).folder)
    assert any(not torch.equal(plain[layer], after[layer]) for layer in after)


@pytest.mark.parametrize("weights", [INT4, INT8, W8A8], ids=["w4a16", "w8a16", "w8a8"])
def test_the_public_library_reads_the_same_model(home, checkpoint, weights):
    """transformers with package compressed-tensors, which is no dependency of ours."""
    pytest.importorskip("compressed_tensors")
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    built = build_artifact(home, checkpoint, "vllm", weights, ())
    plain = AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=torch.float32)
    for layer, weight in unpacked(built.folder).items():
        plain.get_submodule(layer).weight.data = weight
    plain.get_input_embeddings().weight.data = load_file(built.folder / "model.safetensors")[
        "model.embed_tokens.weight"
    ].float()
    read = AutoModelForCausalLM.from_pretrained(
        built.folder, dtype=torch.float32, quantization_config=CompressedTensorsConfig(run_compressed=False)
    )
    ids = torch.arange(20, 60)[None]
    with torch.no_grad():
        ours, theirs = plain(ids).logits, read(ids).logits
    assert torch.allclose(ours, theirs, atol=2e-3)  # the library multiplies in the scales' float16
    assert (ours.argmax(-1) == theirs.argmax(-1)).all()


def test_words_hold_the_first_input_in_their_lowest_bits():
    codes = np.array([[1, 2, 3, 4, 5, 6, 7, 15], [0, 0, 0, 0, 0, 0, 0, 8]], np.uint8)
    assert pack_codes(codes, 4).view(np.uint32).tolist() == [[0xF7654321], [0x80000000]]
    assert pack_codes(codes, 8).view(np.uint32).tolist() == [[0x04030201, 0x0F070605], [0, 0x08000000]]
    with pytest.raises(CompressionError, match="packed by 8"):
        pack_codes(codes[:, :6], 4)


@pytest.mark.parametrize("weights", [INT4, INT8, W8A8, INT4.model_copy(update={"bits": 8})])
def test_the_closed_form_of_the_bytes(home, checkpoint, weights):
    built = build_artifact(home, checkpoint, "vllm", weights, ())
    tensors = load_file(built.folder / "model.safetensors")
    held = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert held == weight_bytes(read_architecture(checkpoint), weights, "vllm")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"symmetric": False}, "symmetric: true"),
        ({"bits": 8, "activations": "int8_static"}, "int8_dynamic"),
        ({"bits": 8, "activations": "int8_dynamic"}, "set it to -1"),
        ({"int8_layers": ("model.layers.0.mlp.up_proj",)}, "leave int8_layers out"),
        ({"max_bytes_fraction": 0.2, "calibration": "gptq"}, "leave max_bytes_fraction out"),
        ({"calibration": "awq"}, "calibration: awq is made for another engine"),
        ({"group_size": 16}, "kernels for 32, 64, 128"),
        ({"embedding_bits": 8}, "token embedding at 16 or 32"),
    ],
)
def test_what_vllm_has_no_kernel_for_is_refused_with_the_config(checkpoint, tmp_path, changes, said):
    weights = INT4.model_dump() | changes
    with pytest.raises(ValueError, match=said):
        WeightCandidate.model_validate({"engine": "vllm", "compute": "bf16", "weights": weights})
    with pytest.raises(CompressionError, match=said):
        build_vllm(checkpoint, WeightSettings.model_validate(weights), tmp_path)


def test_packed_weights_are_multiplied_in_bf16():
    with pytest.raises(ValueError, match="set compute: bf16"):
        WeightCandidate.model_validate({"engine": "vllm", "weights": INT4.model_dump()})


def test_only_vllm_serves_candidates_on_a_gpu():
    given = {"device": "cuda", "weights": WeightSettings(bits=8).model_dump()}
    with pytest.raises(ValueError, match="use vllm"):
        WeightCandidate.model_validate({"engine": "openvino", **given})


def test_an_unquantized_candidate_is_the_checkpoint_itself(home, checkpoint):
    assert build_artifact(home, checkpoint, "vllm", WeightSettings(), ()) == checkpoint
