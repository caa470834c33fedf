"""Closed forms of memory against figures by hand and against real weight files."""

import pytest

from configs.engine import EngineSettings, SchedulerSettings
from configs.schema import RequestSettings
from configs.training import LoraSettings, TrainingSettings
from configs.weights import WeightSettings
from tasks.models.checkpoint import Architecture
from tasks.profiling.cache_memory import allocated_cache_bytes
from tasks.profiling.memory_budget import (
    activation_tensor_bytes,
    cache_token_bytes,
    kv_cache_bytes,
    kv_factor,
    relative_error,
    serving_budget,
    weight_bytes,
)
from tasks.profiling.training_memory import NF4_BITS, lora_parameters, trained_scales, training_budget
from tasks.profiling.weight_memory import plain_bytes

GIB, MIB = 2**30, 2**20
SMOL = Architecture(
    model_type="llama", layers=30, hidden=576, intermediate=1536, heads=9, kv_heads=3, head_dim=64, 
    vocabulary=49152, tied_embeddings=True, parameters=134_515_008, context_tokens=8192, dtype="F32",
)  # fmt: skip
WIDE = SMOL.model_copy(update={"layers": 32, "hidden": 4096, "heads": 32, "kv_heads": 8, "head_dim": 128})


@pytest.mark.parametrize(("bits", "gib"), [(16, 13.04), (8, 6.52), (4, 3.26)])
def test_ideal_weights_of_seven_billion(bits, gib):
    assert plain_bytes(7_000_000_000, bits) / GIB == pytest.approx(gib, abs=0.005)


@pytest.mark.parametrize(("tokens", "gib"), [(1024, 0.5), (4096, 2.0), (8192, 4.0)])
def test_cache_of_four_sequences(tokens, gib):
    assert kv_cache_bytes(WIDE, context_tokens=tokens, batch=4, kv_cache="f16") == gib * GIB
    assert kv_cache_bytes(WIDE, context_tokens=tokens, batch=4, kv_cache="f32") == 2 * gib * GIB
    # by hand: a block of a head holds 2 * 32 * 128 values and 128 + 32 pairs of f32 (1,280 bytes)
    u8 = kv_cache_bytes(WIDE, context_tokens=tokens, batch=4, kv_cache="u8")
    u4 = kv_cache_bytes(WIDE, context_tokens=tokens, batch=4, kv_cache="u4")
    assert u8 == gib / 2 * GIB * (8192 + 1280) / 8192
    assert u4 == gib / 4 * GIB * (4096 + 1280) / 4096


def test_quantized_cache_is_the_engines_own_block():
    # 30 layers, 3 heads, 2 * 32 * 64 values and 96 pairs of f32
    assert kv_cache_bytes(SMOL, context_tokens=33, batch=2, kv_cache="u8") == 2 * 2 * 30 * 3 * (4096 + 768)
    assert cache_token_bytes(SMOL, "u8") == 30 * 3 * 4864 // 32
    assert cache_token_bytes(SMOL, "f32") == 30 * 2 * 3 * 64 * 4
    paged = allocated_cache_bytes(SMOL, "openvino", context_tokens=33, batch=1, kv_cache="bf16")
    assert paged == 64 * 30 * 2 * 3 * 64 * 2


@pytest.mark.parametrize(("kv_heads", "factor"), [(32, 1.0), (8, 0.25), (1, 0.03125)])
def test_grouped_heads_shrink_the_cache(kv_heads, factor):
    assert kv_factor(32, kv_heads) == factor
    grouped = WIDE.model_copy(update={"kv_heads": kv_heads})
    full = WIDE.model_copy(update={"kv_heads": 32})
    sizes = [kv_cache_bytes(a, context_tokens=64, batch=1, kv_cache="f16") for a in (grouped, full)]
    assert sizes[0] / sizes[1] == factor


@pytest.mark.parametrize(("bits", "gib"), [(16, 0.25), (8, 0.125), (4, 0.0625)])
def test_activation_tensor(bits, gib):
    assert activation_tensor_bytes(8, 4096, 4096, bits) == gib * GIB


# Sizes of openvino_model.bin (with 389 bytes of shapes and small constants) and model.onnx.data, as exported.
@pytest.mark.parametrize(
    ("engine", "weights", "file_bytes"),
    [
        ("openvino", WeightSettings(), 538_060_421),
        ("openvino", WeightSettings(bits=8, symmetric=False), 135_234_821),
        ("onnxruntime", WeightSettings(), 540_157_184),
        ("onnxruntime", WeightSettings(bits=8, group_size=32), 153_527_552),
        ("onnxruntime", WeightSettings(bits=8, group_size=128), 153_287_936),
        ("onnxruntime", WeightSettings(bits=4, group_size=32), 100_443_392),
        ("onnxruntime", WeightSettings(bits=4, group_size=32, symmetric=False), 102_987_008),
        ("onnxruntime", WeightSettings(bits=4, group_size=64), 92_038_400),
    ],
)
def test_weights_of_real_files(engine, weights, file_bytes):
    constants = 389 if engine == "openvino" else 0
    assert weight_bytes(SMOL, weights, engine) + constants == file_bytes


def test_four_bits_by_hand():
    linear, table, norms = 106_168_320, 28_311_552, 35_136
    sym = WeightSettings(bits=4, group_size=64)
    by_hand = linear // 2 + linear // 64 * 2 + table + 49_152 * 2 + norms * 4
    assert weight_bytes(SMOL, sym, "openvino") == by_hand
    asym = sym.model_copy(
        update={"symmetric": False}
    )  # zero points: half a byte a group, a byte a row of the table
    assert weight_bytes(SMOL, asym, "openvino") == by_hand + linear // 64 // 2 + 49_152
    mixed = sym.model_copy(update={"int8_ratio": 1.0})
    assert weight_bytes(SMOL, mixed, "openvino") == linear + 155_520 * 2 + table + 49_152 * 2 + norms * 4


def test_transformers_serves_the_checkpoint_as_it_is():
    half = SMOL.model_copy(update={"dtype": "BF16"})
    assert weight_bytes(SMOL, WeightSettings(), "transformers") == 4 * SMOL.parameters
    assert weight_bytes(half, WeightSettings(), "transformers") == 2 * SMOL.parameters


def test_foreign_shape_is_refused():
    with pytest.raises(ValueError, match="gated MLP"):
        weight_bytes(SMOL.model_copy(update={"parameters": 10_000_000}), WeightSettings(), "openvino")


# Peak growth measured on the demo model in a process of its own, the libraries imported before: 32 requests of 16 + 8
# to 24 tokens, 16 at once.
INT8, INT4 = WeightSettings(bits=8, symmetric=False), WeightSettings(bits=4, group_size=64)
PEAKS_MIB = [
    # engine, weights, compute, cache, activation group, repeats, measured
    ("openvino", WeightSettings(), "f32", "u8", 0, 1, 1284),
    ("openvino", WeightSettings(), "bf16", "u8", 0, 1, 922),
    ("openvino", INT8, "f32", "u8", 32, 2, 452),
    ("openvino", INT8, "f32", "u8", 0, 1, 542),
    ("openvino", INT8, "bf16", "u8", 32, 1, 426),
    ("openvino", INT8, "f32", "f32", 32, 1, 470),
    ("openvino", INT8, "f32", "f32", 32, 2, 525),
    ("openvino", INT8, "f32", "f32", 32, 4, 635),
    ("openvino", INT8, "f32", "f32", 32, 8, 854),
    ("openvino", INT4, "f32", "u8", 32, 2, 366),
    ("openvino", INT4, "bf16", "u8", 32, 1, 339),
    ("openvino", INT4.model_copy(update={"calibration": "awq+scale_estimation"}), "f32", "u8", 32, 2, 366),
    ("onnxruntime", WeightSettings(), "f32", "f32", 0, 2, 745),
    ("onnxruntime", WeightSettings(bits=8, group_size=32), "f32", "f32", 0, 2, 279),
    ("onnxruntime", WeightSettings(bits=4, group_size=32), "f32", "f32", 0, 2, 229),
]


@pytest.mark.parametrize(
    ("name", "weights", "compute", "kv_cache", "activation_group", "repeats", "measured_mib"), PEAKS_MIB
)
def test_predicted_peak_is_near_the_measured_one(
    name, weights, compute, kv_cache, activation_group, repeats, measured_mib
):
    engine = EngineSettings(
        engine=name,
        compute=compute,
        kv_cache=kv_cache,
        activation_group=activation_group,
        scheduler=SchedulerSettings(max_num_seqs=16),
    )
    requests = RequestSettings(min_new_tokens=8, max_new_tokens=24, one_stream_new_tokens=12, repeats=repeats)
    budget = serving_budget(SMOL, weights, engine, requests)
    assert abs(relative_error(budget.total_bytes / MIB, measured_mib)) < 0.1
    parts = budget.model_dump(exclude={"endless_bytes"})
    assert parts.pop("total_bytes") == sum(parts.values())


def test_a_pool_fills_with_every_request_until_it_is_resident_as_a_whole():
    engine = EngineSettings(
        engine="openvino", kv_cache="f32", scheduler=SchedulerSettings(max_num_seqs=4, cache_mib=128)
    )
    short, long, endless = (
        serving_budget(SMOL, INT8, engine, RequestSettings(count=8, repeats=repeats))
        for repeats in (1, 2, 99)
    )
    assert short.kv_cache_bytes == long.kv_cache_bytes
    assert short.idle_cache_bytes < long.idle_cache_bytes
    assert endless.kv_cache_bytes + endless.idle_cache_bytes == 128 * MIB
    assert short.endless_bytes == long.endless_bytes == endless.total_bytes


@pytest.mark.parametrize(
    ("compute", "batch", "prompt", "measured_mib"),
    [("f32", 1, 16, 534), ("f32", 32, 48, 700), ("bf16", 1, 16, 775)],
)
def test_predicted_peak_of_transformers(compute, batch, prompt, measured_mib):
    engine = EngineSettings(
        engine="transformers",
        compute=compute,
        kv_cache=compute,
        scheduler=SchedulerSettings(max_num_seqs=batch),
    )
    requests = RequestSettings(count=batch, prompt_tokens=prompt, max_new_tokens=8, one_stream_new_tokens=8)
    budget = serving_budget(SMOL, WeightSettings(), engine, requests)
    assert abs(relative_error(budget.total_bytes / MIB, measured_mib)) < 0.1


def test_cache_grows_with_context_and_stops_at_the_schedulers_limit():
    engine = EngineSettings(engine="openvino", scheduler=SchedulerSettings(max_num_seqs=8, cache_mib=64))
    sizes = [
        serving_budget(
            SMOL, WeightSettings(), engine, RequestSettings(count=8, prompt_tokens=tokens)
        ).kv_cache_bytes
        for tokens in (32, 96, 4096)
    ]
    assert sizes[0] == 8 * 64 * 46_080
    assert sizes[1] == 8 * 128 * 46_080
    assert sizes[2] == 64 * MIB


def test_lora_of_square_projections_and_of_real_ones():
    square = WIDE.model_copy(update={"kv_heads": 32})
    attention = LoraSettings(method="lora", rank=16, target_modules=("q_proj", "k_proj", "v_proj", "o_proj"))
    assert lora_parameters(square, attention) == 16_777_216  # 2 * 4096 * 16 * 4 * 32
    assert lora_parameters(WIDE, attention) == 32 * 16 * (
        2 * 8192 + 2 * (4096 + 1024)
    )  # grouped keys and values
    dora = attention.model_copy(update={"method": "dora"})
    assert lora_parameters(WIDE, dora) - lora_parameters(WIDE, attention) == 32 * (2 * 4096 + 2 * 1024)
    with pytest.raises(ValueError, match="target_modules names c_attn"):
        lora_parameters(WIDE, attention.model_copy(update={"target_modules": ("c_attn",)}))


def test_training_states_by_hand():
    training = TrainingSettings(autocast="none", batch_sequences=2, sequence_tokens=64)
    lora = LoraSettings(method="lora", rank=4, target_modules=("q_proj",))
    budget = training_budget(SMOL, training, lora, logit_tokens=128)
    adapter = 30 * 4 * (576 + 576)
    assert budget.base_bytes == 4 * SMOL.parameters
    assert (budget.trained_bytes, budget.gradients_bytes) == (4 * adapter, 4 * adapter)
    assert budget.optimizer_bytes == 8 * adapter
    full = training_budget(SMOL, training, None, logit_tokens=128)
    states = full.trained_bytes + full.gradients_bytes + full.optimizer_bytes
    assert (full.base_bytes, states) == (0, 16 * SMOL.parameters)


def test_qlora_holds_linear_layers_in_nf4_and_embeddings_in_the_arithmetics_type():
    assert pytest.approx(4.127, abs=0.001) == NF4_BITS
    lora = LoraSettings(method="qlora", rank=4)
    base = training_budget(SMOL, TrainingSettings(autocast="bf16"), lora, logit_tokens=128).base_bytes
    assert base == pytest.approx(106_168_320 * 4.127 / 8 + (SMOL.parameters - 106_168_320) * 2, rel=1e-4)


def test_trained_scales_by_hand():
    linear, scales = 106_168_320, trained_scales(SMOL, 64)
    assert scales.count == linear // 64
    assert trained_scales(SMOL, -1).count == 30 * (576 + 192 + 192 + 576 + 1536 + 1536 + 576)
    first = "model.layers.0.mlp.down_proj"  # 576 outputs of 1,536 inputs
    assert trained_scales(SMOL, 64, [first]).count == scales.count - 576 * (1536 // 64 - 1)
    for autocast, element_bytes in (("none", 4), ("bf16", 2)):
        budget = training_budget(SMOL, TrainingSettings(autocast=autocast), scales, logit_tokens=128)
        teacher = element_bytes * linear + 4 * (SMOL.parameters - linear)
        assert budget.base_bytes == teacher + linear + (2 + 1 + 4 + 4) * scales.count
        assert (budget.trained_bytes, budget.optimizer_bytes) == (4 * scales.count, 8 * scales.count)
        parts = budget.model_dump(exclude={"total_bytes"})
        assert budget.total_bytes == sum(parts.values())
        # The weights that were computed with the scales are kept for the backward pass, or one layer's are.
        again = training_budget(
            SMOL, TrainingSettings(autocast=autocast), scales, logit_tokens=128, recomputed=True
        )
        assert budget.activations_bytes - again.activations_bytes > element_bytes * linear * 29 / 30


def test_loading_is_the_peak_of_a_short_recovery():
    training = TrainingSettings(autocast="bf16", batch_sequences=1, sequence_tokens=16)
    linear, scales = 106_168_320, trained_scales(SMOL, 64)

    def total(dtype: str, **where: bool) -> int:
        shape = SMOL.model_copy(update={"dtype": dtype})
        return training_budget(shape, training, scales, logit_tokens=16, recomputed=True, **where).total_bytes

    # f32: the mapped file, integers, the teacher in bf16, and all else once more; bf16: the mapped file and its weights in f32.
    f32 = 4 * SMOL.parameters + 3 * linear + 11 * scales.count + 4 * (SMOL.parameters - linear)
    assert total("F32") == f32 + 45 * MIB
    assert total("BF16") == 6 * SMOL.parameters + 45 * MIB
    # A GPU is given the weights as they are trained.
    assert total("F32", loaded_here=False) == total("BF16", loaded_here=False) < total("BF16")


def test_relative_error_needs_a_measurement():
    assert relative_error(110, 100) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="measured is 0"):
        relative_error(1, 0)
