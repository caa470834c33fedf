"""Recipes load, inherit and take overrides; a bad one says path, value, rule and way out in one line."""

from pathlib import Path

import pytest

from configs.load import ConfigError, load_config

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "configs" / "demo.yaml"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_recipe_loads(path):
    assert load_config(path).name == path.stem


def test_inheritance_changes_only_what_it_names():
    demo, int4 = load_config(DEMO), load_config(ROOT / "configs" / "demo-int4.yaml")
    assert int4.model == demo.model
    assert int4.quality == demo.quality
    assert [candidate.weights.bits for candidate in int4.quantize.candidates] == [4]
    assert int4.adapt is None


def test_overrides_reach_into_lists_and_clear_values():
    config = load_config(
        DEMO,
        [
            "quality.tasks.items=800",
            "quantize.candidates.0.weights.symmetric=true",
            "goals.min_decode_speedup=null",
        ],
    )
    assert config.quality.tasks.items == 800
    assert config.quantize.candidates[0].weights.symmetric
    assert config.goals.min_decode_speedup is None


def test_threads_reach_every_engine():
    config = load_config(DEMO, ["threads=4"])
    assert config.profile.baseline.threads == config.quality.reference.threads == 4


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("quality.tasks.itens=3", "quality.tasks.itens: unknown setting; did you mean items?"),
        (
            "quantize.candidates.0.weights.bits=5",
            "quantize.candidates.0.weights.bits = 5: input should be 4, 8, 16 or 32",
        ),
        ("quality.tasks.limit=2000", "quality.tasks.limit: unknown setting"),
        (
            "quality.sequential.kind=pocock",
            "quality.sequential.kind = 'pocock': input should be 'obrien-fleming'",
        ),
        ("quality.sequential.looks=0", "quality.sequential.looks = 0"),
        ("requests.count=none", "requests.count = 'none'"),
        ("quality.text.gate_sections=20", "greater than or equal to 60"),
        ("model.source.kind=pickle", "model.source"),
        ("quantize.candidates.9.engine=openvino", "not a place in a list"),
        ("quantize.candidates.0.kv_cache=[]", "quantize.candidates.0.kv_cache"),
        ("quantize=null", "add a quantize section"),
        ("quality.margins.accuracy=null", "accuracy"),
        ("requests.min_new_tokens=64", "max_new_tokens must not be below min_new_tokens"),
        ("quality.margins.kl_nats=.nan", "kl_nats"),
        ("name", "path=value"),
        ("quantize.candidates.2.weights={bits: 8, calibration: awq}", "acts on bits: 4 only"),
        ("quantize.candidates.2.weights={bits: 8, int8_ratio: 0.2}", "act on bits: 4 only"),
        ("quantize.candidates.2.weights={bits: 4, output_feedback: true}", "calibration: gptq; set both"),
        ("quantize.candidates.2.weights={bits: 4, max_bytes_fraction: 0.2}", "calibration: gptq"),
        ("quantize.candidates.2.weights={bits: 4, activations: int8_static}", "goes with bits: 8"),
        (
            "quantize.candidates=[{engine: openvino, weights: {bits: 8}, kv_cache: [u8, bf16]}]",
            "kv_cache: bf16 is refused by OpenVINO with compute: f32",
        ),
        (
            "quantize.candidates=[{engine: openvino, weights: {bits: 8}, compute: bf16}]",
            "kv_cache: f32 is refused by OpenVINO with compute: bf16",
        ),
        (
            "quantize.candidates.2.weights={bits: 4, number: nf4, calibration: gptq}",
            "leave number and activations out",
        ),
        (
            "quantize.candidates.2.weights={bits: 8, activations: int8_static, calibration: gptq}",
            "leave number and",
        ),
    ],
)
def test_a_bad_setting_is_one_line_that_names_it(override, said):
    with pytest.raises(ConfigError) as caught:
        load_config(DEMO, [override])
    message = str(caught.value)
    assert said in message
    assert "\n" not in message


def test_bad_files(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="must be a mapping"):
        load_config(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1\n")
    with pytest.raises(ConfigError, match="not YAML"):
        load_config(tmp_path / "broken.yaml")
    (tmp_path / "circle.yaml").write_text("extends: circle.yaml\n")
    with pytest.raises(ConfigError, match="extends itself"):
        load_config(tmp_path / "circle.yaml")


def test_a_load_of_every_kind_and_its_mistakes(tmp_path):
    recipe = tmp_path / "loaded.yaml"

    def loaded(load: str):
        recipe.write_text(f"extends: {DEMO}\nname: loaded\nload: {load}\n")
        return load_config(recipe).load

    slo = "slo: {ttft_ms: 500, itl_ms: 50}"
    assert loaded(f"{{kind: trace, path: x.csv, time_scale: 4, {slo}}}").time_scale == 4
    assert loaded(f"{{kind: poisson, requests_per_s: 2, {slo}}}").requests == 64
    assert loaded(f"{{kind: closed, concurrency: 3, {slo}}}").slo.attainment == 0.9
    for load, said in (
        (f"{{kind: poisson, requests_per_s: 2, concurrency: 3, {slo}}}", "load.concurrency: unknown setting"),
        (f"{{kind: poisson, request_per_s: 2, {slo}}}", "load.request"),
        (f"{{kind: poisson, requests_per_s: 2, min_new_tokns: 2, {slo}}}", "did you mean min_new_tokens?"),
        (f"{{kind: closed, {slo}}}", "load.concurrency: must be given"),
        ("{kind: closed, concurrency: 3}", "load.slo: must be given"),
        (
            f"{{kind: closed, concurrency: 3, min_new_tokens: 99, {slo}}}",
            "max_new_tokens (64) must not be below",
        ),
        (f"{{kind: burst, {slo}}}", "load"),
    ):
        with pytest.raises(ConfigError) as caught:
            loaded(load)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)
