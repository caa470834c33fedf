from pathlib import Path

import pytest

from configs.load import ConfigError, load_config
from tasks.release import preparation
from tasks.release.preparation import check_gpu

RECIPES = Path(__file__).parents[2] / "configs"


def test_a_gpu_that_is_not_there_is_refused_before_anything_is_fetched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = load_config(RECIPES / "gpu.yaml")
    monkeypatch.setattr(preparation, "open_gpus", list)
    with pytest.raises(
        ConfigError, match=r"profile\.baseline: device is cuda, and no NVIDIA GPU.*use device: cpu"
    ):
        check_gpu(wanted)
    with pytest.raises(ConfigError, match=r"quantize: device is cuda"):
        check_gpu(
            load_config(RECIPES / "gpu.yaml", ["profile.baseline.device=cpu", "quality.reference.device=cpu"])
        )

    check_gpu(load_config(RECIPES / "cpu.yaml"))
    monkeypatch.setattr(preparation, "open_gpus", lambda: [object()])
    check_gpu(wanted)


def test_the_gpu_recipe_searches_no_space_of_the_cpu() -> None:
    settings = load_config(RECIPES / "gpu.yaml").quantize
    assert settings is not None
    assert {each.engine for each in settings.declared} == {"vllm"}
