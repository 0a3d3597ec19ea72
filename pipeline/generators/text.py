"""Prompts to token ids to embeddings: a word-level tokenizer and a small text encoder, or both from a local folder.

Not here: how a record becomes a prompt (see `prompts`). The vocabulary is the words of the given prompts and
nothing else, so whoever scrubs the prompts decides what a released tokenizer knows. Axis letters: n prompts,
t tokens, e embedding width.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from pipeline import config
from pipeline.inspection import require_plain

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

DenoiserKind = Literal["pixart", "unet"]
PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"
SEPARATORS = r"[\s,]+"


def train_tokenizer(prompts: Iterable[str], max_tokens: int) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are the lower-case words of these prompts, in sorted order; commas are dropped."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = sorted({word for prompt in prompts for word in re.split(SEPARATORS, prompt.lower()) if word})
    vocabulary = {token: i for i, token in enumerate((PAD, EOS, UNKNOWN, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(SEPARATORS), "removed")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", special_tokens=[(EOS, vocabulary[EOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        model_max_length=max_tokens,
    )


def load_tokenizer(folder: Path, max_tokens: int) -> PreTrainedTokenizerBase:
    """The tokenizer of a local text encoder, cut to `max_tokens`, which pipelines pad to.

    Raises: UnsafeFolderError.
    """
    from transformers import AutoTokenizer

    require_plain(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    tokenizer.model_max_length = min(max_tokens, tokenizer.model_max_length)
    return tokenizer


def build_encoder(
    cfg: config.TextEncoder, tokenizer: PreTrainedTokenizerBase, denoiser_kind: DenoiserKind, seed: int
) -> PreTrainedModel:
    """The text encoder: from `cfg.folder` (frozen unless `cfg.train`), or a small one to be trained.

    The small one is what the denoiser's pipeline expects: a T5 encoder for `pixart`, CLIP's for `unet`.
    """
    if cfg.folder is not None:
        return _load_encoder(cfg.folder).requires_grad_(cfg.train).eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _small_t5(cfg, tokenizer) if denoiser_kind == "pixart" else _small_clip(cfg, tokenizer)
    return model.eval()


def token_ids(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], max_tokens: int
) -> tuple[Int64[Tensor, "n t"], Int64[Tensor, "n t"]]:
    """Ids and mask (1 token, 0 padding) of the prompts, padded to `max_tokens`.

    Raises: ConfigError if a prompt has more than `max_tokens` tokens; it does not quote it, as logs hold no text.
    """
    ids = tokenizer(list(prompts), add_special_tokens=True, verbose=False)["input_ids"]
    if longer := [len(row) for row in ids if len(row) > max_tokens]:
        raise config.ConfigError(
            f"prompts: want at most {max_tokens} tokens, got {len(longer)} of {len(ids)} prompts with up to "
            f"{max(longer)} — raise text.max_tokens of teach and distill, or lower ingest.prompt.max_words"
        )
    lengths = torch.tensor([len(row) for row in ids], dtype=torch.int64)
    mask = (torch.arange(max_tokens) < lengths[:, None]).long()
    padded = torch.full_like(mask, _id(tokenizer.pad_token_id))
    padded[mask.bool()] = torch.tensor([token for row in ids for token in row], dtype=torch.int64)
    return padded, mask


def embed(
    encoder: torch.nn.Module,
    ids: Int64[Tensor, "n t"],
    mask: Int64[Tensor, "n t"],
    denoiser_kind: DenoiserKind,
) -> Float[Tensor, "n t e"]:
    """Embeddings as the denoiser's pipeline computes them: StableDiffusionPipeline reads padding as tokens."""
    return encoder(ids, attention_mask=mask if denoiser_kind == "pixart" else None)[0]


def width(encoder: PreTrainedModel) -> int:
    """Width of the embeddings."""
    return encoder.config.hidden_size


def _small_t5(cfg: config.TextEncoder, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=cfg.width,
            d_kv=cfg.width // cfg.heads,
            d_ff=2 * cfg.width,
            num_layers=cfg.layers,
            num_heads=cfg.heads,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            pad_token_id=_id(tokenizer.pad_token_id),
            eos_token_id=_id(tokenizer.eos_token_id),
        )
    )


def _small_clip(cfg: config.TextEncoder, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=cfg.width,
            intermediate_size=2 * cfg.width,
            num_hidden_layers=cfg.layers,
            num_attention_heads=cfg.heads,
            max_position_embeddings=cfg.max_tokens,
            pad_token_id=_id(tokenizer.pad_token_id),
            bos_token_id=None,
            eos_token_id=_id(tokenizer.eos_token_id),
        )
    )


def _id(token_id: Any) -> int:
    return int(token_id)


def _load_encoder(folder: Path) -> PreTrainedModel:
    from transformers import AutoConfig, AutoModel, CLIPTextModel, T5EncoderModel

    require_plain(folder)
    options = {"local_files_only": True, "trust_remote_code": False}
    kind = AutoConfig.from_pretrained(folder, **options).model_type
    # The automatic class would load the image half of CLIP and the decoder of T5 too.
    halves = {"clip": CLIPTextModel, "clip_text_model": CLIPTextModel, "t5": T5EncoderModel}
    return halves.get(kind, AutoModel).from_pretrained(folder, use_safetensors=True, **options)
