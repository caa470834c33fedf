import json
import shutil

import pytest
import torch
from gguf_tiny import SPECIAL, TEXT, write_tiny_gguf
from tokenizers import Tokenizer

from configs.model import GgufSource, ModelSettings
from tasks.models.checkpoint import read_architecture
from tasks.models.errors import ModelSourceError
from tasks.models.sources import acquire
from tasks.store.digest import sha256_file


def settings(path, sha256=None) -> ModelSettings:
    return ModelSettings(name="tiny", source=GgufSource(kind="gguf", path=str(path), sha256=sha256))


@pytest.fixture(scope="module")
def checkpoint(tiny_gguf, tmp_path_factory):
    from tasks.store.store import Store

    return acquire(settings(tiny_gguf.path), Store(tmp_path_factory.mktemp("store")))


def test_the_weights_are_transformers_own_dequantization(checkpoint, tiny_gguf):
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(
        tiny_gguf.path.parent, gguf_file=tiny_gguf.path.name, dtype=torch.float32
    ).eval()
    model, report = AutoModelForCausalLM.from_pretrained(checkpoint.folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.dtype == torch.float32
    expected = reference.state_dict()
    assert set(model.state_dict()) == set(expected)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, expected[name]), name
    ids = torch.tensor([[5, 9, 200, 17, 3]])
    with torch.no_grad():
        assert torch.equal(model.eval()(ids).logits, reference(ids).logits)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.generation_config.eos_token_id == 2


@pytest.mark.parametrize("pre", ["smollm", "gpt-2"])
def test_the_tokenizer_is_the_one_the_file_describes(tmp_path, store, pre):
    from transformers import AutoTokenizer

    expected = write_tiny_gguf(tmp_path / "tiny.gguf", pre=pre)
    tokenizer = AutoTokenizer.from_pretrained(acquire(settings(tmp_path / "tiny.gguf"), store).folder)
    for text in (
        TEXT,
        "In 123 years they'll say: naïve café\t\n\n  x == 42",
        " leading",
        "<|im_start|>user\nHi<|im_end|>",
    ):
        ids = tokenizer(text)["input_ids"]
        assert ids == expected.encode(text).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token] == [
        SPECIAL[1],
        SPECIAL[2],
        SPECIAL[2],
        SPECIAL[0],
    ]
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert rendered == "<|im_start|>Hi<|im_end|>"
    assert tokenizer.decode(tokenizer("a<|im_end|>b")["input_ids"], skip_special_tokens=True) == "ab"


def test_the_architecture_is_read_from_the_headers(checkpoint, tiny_gguf):
    from transformers import AutoModelForCausalLM

    found = read_architecture(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint.folder)
    assert found.parameters == model.num_parameters()
    assert (found.layers, found.hidden, found.intermediate) == (2, 64, 96)
    assert (found.heads, found.kv_heads, found.head_dim) == (4, 2, 16)
    assert (found.tied_embeddings, found.dtype, found.context_tokens) == (True, "F32", 256)
    assert found.vocabulary == tiny_gguf.tokenizer.get_vocab_size()


@pytest.mark.parametrize("kept", [0, 3, 100, 2_000, 0.3, 0.999])
def test_a_truncated_file_is_refused(tiny_gguf, tmp_path, store, kept):
    whole = tiny_gguf.path.read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[: kept if isinstance(kept, int) else int(kept * len(whole))])
    with pytest.raises(ModelSourceError, match=r"cut\.gguf: not a whole GGUF file"):
        acquire(settings(path), store)
    assert not any((store.home / "artifacts").iterdir())
    assert not any((store.home / "scratch").iterdir())


def test_an_altered_or_absent_file_is_refused(tiny_gguf, tmp_path, store):
    pinned = sha256_file(tiny_gguf.path)
    path = tmp_path / "flipped.gguf"
    data = bytearray(tiny_gguf.path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelSourceError, match=f"expected sha256 {pinned}, found {sha256_file(path)}"):
        acquire(settings(path, pinned), store)
    with pytest.raises(ModelSourceError, match="no such file"):
        acquire(settings(tmp_path / "absent.gguf"), store)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            {"drop": "blk.1.ffn_up.weight"},
            r"model\.layers\.1\.mlp\.up_proj\.weight: expected shape .*found none",
        ),
        ({"nan": True}, r"model\.norm\.weight holds NaN"),
        ({"pre": "no-such-cut"}, r"tokenizer\.ggml\.pre: no-such-cut is not known"),
    ],
)
def test_a_model_that_cannot_be_converted_whole_is_refused(tmp_path, store, spoil, message):
    write_tiny_gguf(tmp_path / "bad.gguf", **spoil)
    with pytest.raises(ModelSourceError, match=message) as refusal:
        acquire(settings(tmp_path / "bad.gguf"), store)
    assert "\n" not in str(refusal.value)
    assert not any((store.home / "artifacts").iterdir())


def test_a_full_disk_is_known_before_the_weights_are_written(tiny_gguf, store, monkeypatch):
    from tasks.store.errors import StoreError

    usage = shutil.disk_usage(store.home)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(StoreError, match="no space left"):
        acquire(settings(tiny_gguf.path), store)


def test_the_saved_tokenizer_is_plain_data(checkpoint):
    config = json.loads((checkpoint.folder / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert Tokenizer.from_file(str(checkpoint.folder / "tokenizer.json")).encode("tuple").ids
