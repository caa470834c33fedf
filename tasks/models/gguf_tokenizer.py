"""The tokenizer inside a GGUF file, as the `tokenizer.json` that llama.cpp's own tokenization agrees with.

transformers' converter (5.5) takes a llama architecture for a SentencePiece model whatever the file says:
with SmolLM2 it puts a begin token before every text, gives the begin token as the end token, drops the
padding token and does not split digits. So the pieces are put together here from what the file states:
`tokenizer.ggml.model` (how tokens merge), `tokenizer.ggml.pre` (how text is cut before merging), the special
tokens and the chat template.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.models.errors import ModelSourceError

if TYPE_CHECKING:
    from gguf import GGUFReader
    from tokenizers import Tokenizer

CONTROL_TOKEN, USER_DEFINED_TOKEN = 3, 4  # gguf.TokenType

# How text is cut into words, by `tokenizer.ggml.pre`. "gpt2": the pattern built into the byte-level cutter;
# "digits": the same after single digits are cut off; else a pattern (of Llama 3 and Qwen 2).
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CUTS = {
    "gpt-2": "gpt2",
    "olmo": "gpt2",
    "smollm": "digits",
    "starcoder": "digits",
    "refact": "digits",
    "llama-bpe": _WORDS % "{1,3}",
    "qwen2": _WORDS % "",
}


def _value(reader: "GGUFReader", name: str, default: Any = None) -> Any:
    field = reader.get_field(f"tokenizer.{name}")
    return default if field is None else field.contents()


def _byte_level(reader: "GGUFReader", tokens: list[str]) -> "Tokenizer":
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    pre = _value(reader, "ggml.pre", "unnamed")
    if pre not in CUTS:
        raise ModelSourceError(
            f"GGUF tokenizer.ggml.pre: {pre} is not known (known: {', '.join(CUTS)}); "
            "use the safetensors form of the model (kind: hub or folder)"
        )
    merges = [tuple(merge.split(" ", 1)) for merge in _value(reader, "ggml.merges", [])]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=pre == "llama-bpe"))
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=CUTS[pre] in ("gpt2", "digits"))
    if CUTS[pre] == "digits":
        words = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    elif CUTS[pre] != "gpt2":
        words = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(CUTS[pre]), "isolated"), words])
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = words
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(reader: "GGUFReader", tokens: list[str]) -> "Tokenizer":
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers.convert_slow_tokenizer import generate_merges

    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = generate_merges(vocabulary, list(zip(tokens, _value(reader, "ggml.scores"), strict=True)))
    unknown = tokens[_value(reader, "ggml.unknown_token_id", 0)]
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    prefix = bool(_value(reader, "ggml.add_space_prefix", True))
    spaces = [normalizers.Prepend("▁")] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*spaces, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def special_tokens(reader: "GGUFReader") -> dict[str, int]:
    """Ids of bos, eos, pad and unk, where the file names them; padding, which is masked, is else eos."""
    names = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    ids = {name: _value(reader, f"ggml.{field}_token_id") for name, field in names.items()}
    if ids["pad"] is None:
        ids["pad"] = ids["eos"]
    return {name: int(index) for name, index in ids.items() if index is not None}


def write_tokenizer(reader: "GGUFReader", folder: Path, *, context_tokens: int) -> None:
    """Write tokenizer.json and tokenizer_config.json (special tokens, chat template) for a GGUF file.

    Args:
        reader: the open GGUF file.
        folder: where to write.
        context_tokens: largest context of the model.

    Raises:
        ModelSourceError: an unsupported kind of tokenizer, or a special token outside the vocabulary.
    """
    from tokenizers import AddedToken, processors

    kind, tokens = _value(reader, "ggml.model"), _value(reader, "ggml.tokens", [])
    if kind not in ("gpt2", "llama") or not tokens:
        raise ModelSourceError(
            f"GGUF tokenizer.ggml.model: {kind} with {len(tokens)} tokens is not supported "
            "(gpt2 and llama are); use the safetensors form of the model (kind: hub or folder)"
        )
    tokenizer = _byte_level(reader, tokens) if kind == "gpt2" else _sentencepiece(reader, tokens)
    types = _value(reader, "ggml.token_type", [])
    for token_type, special in ((CONTROL_TOKEN, True), (USER_DEFINED_TOKEN, False)):
        marked = [token for token, of in zip(tokens, types, strict=False) if of == token_type]
        added = [AddedToken(token, normalized=False, special=special) for token in marked]
        tokenizer.add_special_tokens(added) if special else tokenizer.add_tokens(added)
    ids = special_tokens(reader)
    if wrong := {name: index for name, index in ids.items() if not 0 <= index < len(tokens)}:
        raise ModelSourceError(
            f"GGUF special tokens {wrong} lie outside the vocabulary of {len(tokens)} tokens"
        )
    # llama.cpp's defaults where the file is silent
    if _value(reader, "ggml.add_bos_token", kind == "llama" or _value(reader, "ggml.pre") == "llama-bpe"):
        begin = tokens[ids["bos"]]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[begin, "$A"],
            pair=[begin, "$A", f"{begin}:1", "$B:1"],
            special_tokens=[(begin, ids["bos"])],
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": context_tokens,
        **{f"{name}_token": tokens[index] for name, index in ids.items()},
    }
    if template := _value(reader, "chat_template"):
        settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(
        json.dumps(settings, indent=2, ensure_ascii=False), encoding="utf-8"
    )
