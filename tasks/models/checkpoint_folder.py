"""Which files of a model folder make a checkpoint, and which are refused.

Only data is taken: configuration, tokenizer, safetensors. Pickle files can run code when they are loaded, so
they are never copied, let alone opened; Python files only when the configuration trusts them.
"""

import json
from pathlib import Path
from typing import Any

from tasks.models.errors import ModelSourceError
from tasks.models.safetensors_file import read_tensors

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.json"
SIDE_FILES = (
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    TOKENIZER_FILE,
    "tokenizer.model",
    "vocab.json",
)
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a model folder.

    Raises:
        ModelSourceError: absent, unreadable or no object.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ModelSourceError(f"{path}: no such file; a model needs it") from error
    except (ValueError, OSError) as error:
        raise ModelSourceError(f"{path}: unreadable ({error}); fetch the file again") from error
    if not isinstance(value, dict):
        raise ModelSourceError(f"{path}: expected a JSON object, found a {type(value).__name__}")
    return value


def refuse_pickle(names: list[str], where: str) -> None:
    """Explain that a model has no safetensors weights.

    Raises:
        ModelSourceError: always.
    """
    pickles = sorted(name for name in names if name.endswith(PICKLE_SUFFIXES))
    found = (
        f"only pickle weights ({pickles[0]}), which can run code when loaded," if pickles else "no weights"
    )
    raise ModelSourceError(
        f"{where}: found {found} and no {SINGLE} or {INDEX}; convert the model with save_pretrained, "
        "which writes safetensors, or use another revision"
    )


def weight_files(folder: Path) -> tuple[str, ...]:
    """Names of the safetensors files of a checkpoint, each whole, together what the index promises.

    Raises:
        ModelSourceError: none, only pickles, or a shard that is absent, truncated or incomplete.
    """
    weight_map: dict[str, str] = {}
    shards = [SINGLE]
    if (folder / INDEX).is_file():
        weight_map = dict(read_json(folder / INDEX).get("weight_map") or {})
        shards = sorted(set(weight_map.values()))
        if not shards:
            raise ModelSourceError(f"{folder / INDEX}: has no weight_map; fetch the file again")
    elif not (folder / SINGLE).is_file():
        refuse_pickle([path.name for path in folder.iterdir()], str(folder))
    for shard in shards:
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise ModelSourceError(f"{folder / INDEX}: {shard!r} is not a safetensors file of this folder")
        if not (folder / shard).is_file():
            raise ModelSourceError(f"{folder / shard}: missing, but {INDEX} names it; fetch the model again")
        tensors = read_tensors(folder / shard)
        lost = sorted(name for name, home in weight_map.items() if home == shard and name not in tensors)
        if lost or not tensors:
            raise ModelSourceError(
                f"{folder / shard}: lacks tensor {lost[0] if lost else 'data'}; fetch it again"
            )
    return tuple(shards)


def checkpoint_files(folder: Path, *, trust_remote_code: bool) -> tuple[str, ...]:
    """Names of the files to take from a folder, after all checks.

    Raises:
        ModelSourceError: no such folder, no config or tokenizer, untrusted remote code, bad weights.
    """
    if not folder.is_dir():
        raise ModelSourceError(
            f"{folder}: no such folder; model.source.path must name a folder with config.json"
        )
    config = read_json(folder / "config.json")
    tokenizer = (
        read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    )
    for name, settings in (("config.json", config), ("tokenizer_config.json", tokenizer)):
        if "auto_map" in settings and not trust_remote_code:
            raise ModelSourceError(
                f"{folder / name}: the model carries its own Python code (auto_map), which is not run; "
                "a model that only this code can compute is not supported; where transformers knows its architecture, too, set "
                "model.trust_remote_code: true to take it"
            )
    weights = weight_files(folder)
    if not (folder / TOKENIZER_FILE).is_file():
        raise ModelSourceError(
            f"{folder}: no {TOKENIZER_FILE}; save the model's fast tokenizer into the folder "
            "(transformers: AutoTokenizer.from_pretrained(...).save_pretrained(folder))"
        )
    side = [name for name in SIDE_FILES if (folder / name).is_file()]
    code = sorted(path.name for path in folder.glob("*.py")) if trust_remote_code else []
    index = [INDEX] if (folder / INDEX).is_file() else []
    return ("config.json", *side, *index, *weights, *code)
