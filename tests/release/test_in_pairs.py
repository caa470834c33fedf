"""Two candidates measured in turn: the ratio is the proposed over the present, and what fails in the process is the caller's error."""

import pytest
from tiny_llama import tiny_llama

from configs.engine import EngineSettings
from configs.model import FolderSource, ModelSettings
from configs.schema import Config, RequestSettings
from tasks.engines.protocol import EngineError
from tasks.release.in_pairs import Pair, ratios_in_pairs, speed_ratios
from tasks.release.measuring import serve_job, source_candidate
from tasks.release.preparation import make_workspace
from tasks.release.workspace import Workspace
from tests.fixtures.clockwork_engine import ClockworkEngine

REQUESTS = RequestSettings(count=4, max_new_tokens=12, one_stream_new_tokens=8, repeats=1)
ENGINE = EngineSettings(engine="openvino", scheduler={"cache_mib": 16})


def test_a_step_of_two_thirds_of_the_time_is_one_and_a_half_times_as_fast():
    slow = ClockworkEngine(EngineSettings(engine="openvino"), step_s=0.03, prefill_s=0.09)
    fast = ClockworkEngine(EngineSettings(engine="openvino"), step_s=0.02, prefill_s=0.06)
    text = tuple(range(100))
    ratios = speed_ratios(slow, fast, REQUESTS, text, 2)
    assert ratios == pytest.approx([1.5] * 4)
    assert slow.calls == fast.calls  # the same prompts
    assert speed_ratios(fast, slow, REQUESTS, text, 1) == pytest.approx([2 / 3] * 2)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    root = tmp_path_factory.mktemp("pairs")
    tiny_llama(root / "model", layers=2)
    model = ModelSettings(name="tiny", source=FolderSource(kind="folder", path=str(root / "model")))
    text = {"section_characters": 200, "search_sections": 4}
    config = Config.model_validate(
        {
            "name": "pairs",
            "model": model,
            "quality": {"margins": {"accuracy": None}, "text": text, "tries": 1},
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEIRYO_HOME", str(root / "store"))
        return make_workspace(config)


def test_real_engines_in_a_process_of_their_own(workspace):
    present = serve_job(workspace, source_candidate(workspace, ENGINE), REQUESTS)
    rounded = ENGINE.model_copy(update={"kv_cache": "u8"})
    proposed = serve_job(workspace, source_candidate(workspace, rounded), REQUESTS)
    ratios = ratios_in_pairs(workspace.store, Pair(present=present, proposed=proposed, blocks=2))
    assert len(ratios.ratios) == 4
    assert all(ratio > 0 for ratio in ratios.ratios)

    broken = proposed.model_copy(update={"artifact": "0" * 64})
    with pytest.raises(EngineError, match="MissingArtifact"):
        ratios_in_pairs(workspace.store, Pair(present=present, proposed=broken, blocks=1))
