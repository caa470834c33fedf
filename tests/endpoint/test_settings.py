"""Settings, the API key and vLLM's command line."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from configs.engine import EngineSettings, SchedulerSettings
from configs.load import ConfigError
from configs.serve import API_KEY_VARIABLE, ServeSettings, serve_settings
from flows import serving
from tasks.endpoint.api_key import read_api_key
from tasks.endpoint.server import listen
from tasks.endpoint.vllm import vllm_command
from tasks.store.digest import PROJECT_ROOT


def test_settings_are_given_as_path_and_value() -> None:
    assert serve_settings([]).host == "127.0.0.1"
    given = serve_settings(["port=0", "limits.new_tokens=64", "limits.request_s=1.5"])
    assert (given.port, given.limits.new_tokens, given.limits.request_s) == (0, 64, 1.5)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("port", "path=value"),
        ("prot=1", "did you mean port"),
        ("limits.newtokens=1", "did you mean limits.new_tokens"),
        ("limits=1", "unknown setting"),
        ("port.x=1", "unknown setting"),
        ("port=70000", "port = 70000"),
        ("limits.grace_s=-1", "limits.grace_s = -1"),
        ("host=[", "not YAML"),
        ("api_key=secret", "unknown setting"),
    ],
)
def test_a_wrong_setting_is_named(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace(".", r"\.").replace("[", r"\[")):
        serve_settings([override])


def test_the_key_comes_from_the_environment_or_a_file(tmp_path: Path) -> None:
    assert read_api_key(None, {}) is None
    assert read_api_key(None, {API_KEY_VARIABLE: "abc"}) == "abc"
    file = tmp_path / "key"
    file.write_text("def\n")
    assert read_api_key(file, {API_KEY_VARIABLE: "abc"}) == "def"


@pytest.mark.parametrize(
    ("host", "alone"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("box", False),
    ],
)
def test_an_open_door_without_a_key_is_said(
    host: str, alone: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_champion(model: str) -> None:
        raise LookupError(model)

    monkeypatch.setattr(serving, "_champion", no_champion)
    monkeypatch.setattr(serving, "prepare_environment", lambda *_, **__: None)
    monkeypatch.delenv(API_KEY_VARIABLE, raising=False)
    with pytest.raises(LookupError):
        serving.serve("m", [f"host={host}" if host != "::" else "host='::'"], lambda _: None)
    assert ("no API key" in capsys.readouterr().err) == (not alone)


@pytest.mark.parametrize("content", ["", "\n", "a b", "a\nb\n", "schlüssel"])
def test_a_key_that_no_client_could_send_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "key"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match="api_key_file") as refused:
        read_api_key(file, {})
    assert "schl" not in str(refused.value)
    with pytest.raises(ConfigError, match="api_key_file"):
        read_api_key(tmp_path / "absent", {})
    with pytest.raises(ConfigError, match=API_KEY_VARIABLE):
        read_api_key(None, {API_KEY_VARIABLE: ""})


def test_a_port_that_is_taken_is_bad_input() -> None:
    with listen("127.0.0.1", 0) as first, pytest.raises(ConfigError, match="choose another"):
        listen("127.0.0.1", first.getsockname()[1])


ENGINE = EngineSettings(
    engine="vllm", compute="bf16", kv_cache="bf16", scheduler=SchedulerSettings(max_num_seqs=7)
)


def test_vllm_that_is_not_there_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"num_attention_heads": 4, "hidden_size": 64, "num_hidden_layers": 2})
    )
    settings = ServeSettings(vllm_command=str(tmp_path / "vllm"))
    with pytest.raises(ConfigError, match="no such command"):
        vllm_command(settings, ENGINE, model="m", folder=tmp_path, sequence_tokens=99)


def test_a_limit_that_vllms_server_does_not_have_is_refused(tmp_path: Path) -> None:
    settings = serve_settings(["limits.queue_requests=5", "limits.new_tokens=9"])
    with pytest.raises(ConfigError, match=r"limits\.queue_requests: m is served by vLLM's own server"):
        vllm_command(settings, ENGINE, model="m", folder=tmp_path, sequence_tokens=99)


def test_vllms_server_takes_the_place_of_ours(tmp_path: Path) -> None:
    """A stand-in for `vllm` that writes down how it was started: vLLM itself is not installed here."""
    script = tmp_path / "vllm"
    script.write_text(
        f"#!{sys.executable}\nimport json, os, sys\n"
        "print(json.dumps([sys.argv[1:], os.environ.get('VLLM_API_KEY'), os.getpid()]))\nsys.exit(7)\n"
    )
    script.chmod(0o755)
    config = {"num_attention_heads": 4, "hidden_size": 64, "num_hidden_layers": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    settings = ServeSettings(vllm_command=str(script), port=8123)
    command = vllm_command(settings, ENGINE, model="m", folder=tmp_path, sequence_tokens=99)
    code = (
        "import os; from tasks.endpoint.vllm import become_vllm;"
        f"print(os.getpid(), flush=True); become_vllm({command!r}, 'k3y', 2, os.environ)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=PROJECT_ROOT,
        timeout=60,
        check=False,
    )
    ours, told = done.stdout.splitlines()
    arguments, key, process = json.loads(told)
    assert done.returncode == 7
    assert process == int(ours)
    assert key == "k3y"
    assert "k3y" not in arguments
    assert arguments[:2] == ["serve", str(tmp_path)]
    options = {name: value for name, value in pairwise(arguments) if name.startswith("--")}
    assert options["--served-model-name"] == "m"
    assert (options["--host"], options["--port"]) == ("127.0.0.1", "8123")
    assert (options["--max-num-seqs"], options["--max-model-len"]) == ("7", "99")
    assert options["--dtype"] == "bfloat16"
    assert json.loads(options["--override-generation-config"]) == {"temperature": 0}
    assert "--no-enable-prefix-caching" in arguments
