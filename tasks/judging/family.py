"""Model families: a judge prefers its own kin (Panickssery et al., NeurIPS 2024), so kin has no vote.

A family is read from a model's name, or declared in the config. A name may tell two ("DeepSeek-R1-Distill-Qwen"): then it is
of both. The architecture in config.json counts only where the name says nothing: many families are built like Llama.
"""

import json
import re
from pathlib import Path

FAMILIES: dict[str, str] = {
    "llama": r"llama|vicuna|alpaca",
    "qwen": r"qwen|qwq",
    "mistral": r"mi[sx]tral|ministral|codestral|magistral|devstral",
    "gemma": r"gemma|gemini",
    "phi": r"\bphi[-_ ]?\d",
    "smollm": r"smol",
    "gpt": r"\bgpt|chatgpt|\bo[134](?:-|$)|davinci",
    "claude": r"claude",
    "deepseek": r"deepseek",
    "command": r"command[-_ ]?(?:r|a)\b|\baya\b|cohere",
    "granite": r"granite",
    "olmo": r"olmo|tulu",
    "falcon": r"falcon",
    "yi": r"\byi[-_ ]\d",
    "glm": r"glm",
    "internlm": r"internlm",
    "exaone": r"exaone",
    "nemotron": r"nemotron",
    "grok": r"grok",
    "kimi": r"kimi|moonshot",
    "minicpm": r"minicpm",
    "pythia": r"pythia|gpt[-_ ]?neo",
    "plamo": r"plamo",
    "sarashina": r"sarashina",
    "swallow": r"swallow",
}


def families_of(name: str, *, declared: bool = False) -> frozenset[str]:
    """Families that a model's name tells; `declared`: the name is a family's own, known to the table or not."""
    text = name.strip().lower()
    found = frozenset(family for family, pattern in FAMILIES.items() if re.search(pattern, text))
    return found or (frozenset({text}) if declared and text else frozenset())


def families_of_folder(folder: Path, name: str) -> frozenset[str]:
    """Families of a local model: by its name and the one in its config.json, else by its architecture."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    named = families_of(name) | families_of(
        str(config.get("_name_or_path") or config.get("_model_name_or_path") or "")
    )
    return named or families_of(str(config.get("model_type") or ""), declared=True)
