from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from pipeline import config
from pipeline.config import ConfigError
from pipeline.generators import text

PROMPTS = ["60s, Woman, left effusion", "40s, man, pacemaker,  left pneumothorax", ""]


def test_every_word_is_a_token_whatever_its_case_and_commas_are_dropped() -> None:
    tokenizer = text.train_tokenizer(PROMPTS, max_tokens=8)
    assert tokenizer.tokenize("LEFT effusion,woman , 60s") == ["left", "effusion", "woman", "60s"]
    ids, mask = text.token_ids(tokenizer, ["left effusion", "left secret", ""], 5)
    vocabulary = tokenizer.get_vocab()
    assert ids.tolist() == [
        [vocabulary["left"], vocabulary["effusion"], 1, 0, 0],
        [vocabulary["left"], vocabulary["<unk>"], 1, 0, 0],
        [1, 0, 0, 0, 0],
    ]
    assert mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]


@settings(max_examples=20, deadline=None)
@given(st.permutations(PROMPTS * 2))
def test_the_vocabulary_does_not_depend_on_the_order_of_prompts(prompts: list[str]) -> None:
    tokenizer = text.train_tokenizer(prompts, max_tokens=8)
    words = ["40s", "60s", "effusion", "left", "man", "pacemaker", "pneumothorax", "woman"]
    expected = {token: i for i, token in enumerate(["<pad>", "</s>", "<unk>", *words])}
    assert tokenizer.get_vocab() == expected


def test_ids_are_those_that_a_pipeline_computes() -> None:
    tokenizer = text.train_tokenizer(PROMPTS, max_tokens=9)
    reference = tokenizer(PROMPTS, padding="max_length", max_length=9, truncation=True, return_tensors="pt")
    ids, mask = text.token_ids(tokenizer, PROMPTS, 9)
    assert torch.equal(ids, reference.input_ids)
    assert torch.equal(mask, reference.attention_mask)


def test_a_prompt_that_is_too_long_is_counted_and_not_quoted() -> None:
    tokenizer = text.train_tokenizer(PROMPTS, max_tokens=4)
    with pytest.raises(ConfigError, match="want at most 5 tokens, got 1 of 3 prompts with up to 6") as refused:
        text.token_ids(tokenizer, PROMPTS, 5)
    assert "pacemaker" not in str(refused.value)


def test_padding_does_not_change_the_embedding_of_a_word() -> None:
    tokenizer = text.train_tokenizer(PROMPTS, max_tokens=12)
    encoder = text.build_encoder(config.TextEncoder(width=16, heads=2), tokenizer, "pixart", seed=0)
    short, long = (text.embed(encoder, *text.token_ids(tokenizer, PROMPTS, n), "pixart") for n in (6, 12))
    _, mask = text.token_ids(tokenizer, PROMPTS, 6)
    torch.testing.assert_close(short[mask.bool()], long[:, :6][mask.bool()])


@pytest.mark.parametrize("kind", ["pixart", "unet"])
def test_the_seed_decides_the_small_encoder(kind: text.DenoiserKind) -> None:
    tokenizer = text.train_tokenizer(PROMPTS, max_tokens=8)
    cfg = config.TextEncoder(width=16, heads=2, max_tokens=8)
    before = torch.random.get_rng_state()
    ids, mask = text.token_ids(tokenizer, PROMPTS, 8)
    first, again, other = (
        text.embed(text.build_encoder(cfg, tokenizer, kind, seed), ids, mask, kind) for seed in (0, 0, 1)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.shape == (3, 8, 16)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def local_encoder(folder: Path, kind: str) -> CLIPTextModel | T5EncoderModel:
    text.train_tokenizer(PROMPTS, max_tokens=20).save_pretrained(folder)
    if kind == "clip":
        shape = CLIPTextConfig(
            vocab_size=11,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=20,
        )
        encoder = CLIPTextModel(shape)
    else:
        encoder = T5EncoderModel(T5Config(vocab_size=11, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2))
    encoder.save_pretrained(folder)
    return encoder.eval()


@pytest.mark.parametrize(("kind", "denoiser_kind"), [("clip", "unet"), ("t5", "pixart")])
def test_a_local_text_encoder_is_used_as_it_is_and_frozen(
    kind: str, denoiser_kind: text.DenoiserKind, tmp_path: Path
) -> None:
    saved = local_encoder(tmp_path, kind)
    cfg = config.TextEncoder(folder=tmp_path, max_tokens=8)
    tokenizer = text.load_tokenizer(tmp_path, cfg.max_tokens)
    encoder = text.build_encoder(cfg, tokenizer, denoiser_kind, seed=0)
    assert tokenizer.model_max_length == 8
    assert text.width(encoder) == 16
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    ids, mask = text.token_ids(tokenizer, PROMPTS, 8)
    expected = text.embed(saved, ids, mask, denoiser_kind)
    torch.testing.assert_close(text.embed(encoder, ids, mask, denoiser_kind), expected)
