import pytest

from tasks.models.checkpoint import Architecture, read_architecture


@pytest.mark.model
def test_the_demo_model_is_what_its_card_says(demo_checkpoint):
    assert read_architecture(demo_checkpoint) == Architecture(
        model_type="llama",
        layers=30,
        hidden=576,
        intermediate=1536,
        heads=9,
        kv_heads=3,
        head_dim=64,
        vocabulary=49152,
        tied_embeddings=True,
        parameters=134_515_008,
        context_tokens=8192,
        dtype="F32",
    )


@pytest.mark.model
def test_the_demo_tokenizer_keeps_text_and_special_tokens(demo_checkpoint):
    from pydoc_data.topics import topics

    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_checkpoint.folder)
    for text in list(topics.values())[:20]:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    ids = tokenizer("The year 2026")["input_ids"]
    assert ids == [504, 713, 216, 34, 32, 34, 38]  # one token a digit, no bos
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer(chat)["input_ids"][0] == tokenizer.bos_token_id
