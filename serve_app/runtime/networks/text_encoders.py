"""Prompt to text embeddings: tokens in chunks of 75, each chunk encoded alone and emphasized.

One chunk per call, always: the number of texts in a call changes the last bits of each. A prompt of
one chunk without weights is encoded to the bit as by `encode_prompt` of
`StableDiffusionXLPipeline`. Beyond that, results equal AUTOMATIC1111's web UI at its defaults:
comma_padding_backtrack 20, and emphasis "Original", which weighs the chunk of each encoder by
itself; `core.diffusion.prompt` lists deviations in syntax and in the range of weights. The pooled
embedding is that of the first chunk without emphasis, as there and in ComfyUI.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Protocol

import torch

from serve_app.core.diffusion.extensions import ExtensionRef
from serve_app.core.diffusion.prompt import (
    CHUNK_TOKENS,
    MAX_CHUNKS,
    WEIGHT_RANGE,
    Token,
    WeightedText,
    chunk_tokens,
    clamp_weight,
    parse,
)

_MAX_CACHED = 128  # chunks; about 0.3 MB each for SDXL in fp16
_MAX_QUOTED = 200  # characters of the cut text in a warning

Chunk = tuple[tuple[Token, ...], ...]  # the tokens of each encoder
_CacheKey = tuple[Chunk, tuple[ExtensionRef, ...]]  # and the LoRAs active in the encoders
_Encoding = tuple[torch.Tensor, torch.Tensor]  # embeddings and pooled embedding


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """A prompt as tokens, in at least one chunk, with warnings for the caller."""

    chunks: tuple[Chunk, ...]
    warnings: tuple[str, ...]


class TextEncoders(Protocol):
    """What a stage's conditioner encodes prompts with. Tests use doubles."""

    def tokenize(self, prompt: str, name: str, max_chunks: int = MAX_CHUNKS) -> TokenizedPrompt:
        """Return the prompt as tokens in at most `max_chunks`; warnings call it `name`."""

    def encode(
        self, prompt: TokenizedPrompt, chunks: int, extensions: tuple[ExtensionRef, ...] = ()
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return embeddings (77 * chunks, width) and the pooled embedding (projection_dim,).

        A shorter prompt is padded with chunks of "". `extensions` are those active in the encoders.
        """

    def clear_cache(self) -> None:
        """Drop every encoding that is kept for later calls."""


class ClipTextEncoders:
    """`TextEncoders` with a checkpoint's own tokenizers and encoders, the pooling one last."""

    def __init__(self, encoders: Sequence[tuple[Any, Any]], device: torch.device) -> None:
        self._encoders = tuple(
            encoders
        )  # (CLIPTokenizer, CLIPTextModel): two, or the refiner's one
        self._device = device
        self._keeps_on_device = True
        self._empty: Chunk = ((),) * len(self._encoders)
        self._cache: OrderedDict[_CacheKey, _Encoding] = OrderedDict()  # least recently used first

    @property
    def networks(self) -> tuple[Any, ...]:
        """The text encoders."""
        return tuple(encoder for _, encoder in self._encoders)

    def keep_on_device(self, *, on_device: bool) -> None:
        """Keep the encoders on the device, or else on the CPU except while they encode."""
        self._keeps_on_device = on_device
        self._move(self._device if on_device else torch.device("cpu"))

    def tokenize(self, prompt: str, name: str, max_chunks: int = MAX_CHUNKS) -> TokenizedPrompt:
        """See `TextEncoders`. What exceeds `max_chunks` is cut, with a warning."""
        sections, warnings = parse(prompt), []
        weights = [text.weight for section in sections for text in section]
        if any(weight != clamp_weight(weight) for weight in weights):
            low, high = WEIGHT_RANGE
            warnings.append(f"weights in the {name} were kept between {low:g} and {high:g}")
        columns = [_tokenize(tokenizer, sections) for tokenizer, _ in self._encoders]
        chunks = tuple(zip_longest(*columns, fillvalue=()))
        if rest := chunks[max_chunks:]:
            ids = [id for chunk in rest for id, _ in chunk[-1]]
            text = self._encoders[-1][0].decode(ids)
            quoted = text if len(text) <= _MAX_QUOTED else f"{text[:_MAX_QUOTED]}…"
            warnings.append(
                f"the {name} was cut after {max_chunks} chunks of {CHUNK_TOKENS} tokens"
                f"{'' if max_chunks == MAX_CHUNKS else ', its share at each step'}: "
                f'{len(ids)} tokens were left out, "{quoted}"'
            )
        return TokenizedPrompt(chunks[:max_chunks], tuple(warnings))

    def encode(
        self, prompt: TokenizedPrompt, chunks: int, extensions: tuple[ExtensionRef, ...] = ()
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `TextEncoders`."""
        padding = [self._empty] * (chunks - len(prompt.chunks))
        keys = [(chunk, extensions) for chunk in (*prompt.chunks, *padding)]
        with nullcontext() if set(keys) <= set(self._cache) else self._on_device():
            encoded = [self._cached(key) for key in keys]
        embeds, pooled = encoded[0]
        if len(encoded) > 1:
            embeds = torch.cat([chunk_embeds for chunk_embeds, _ in encoded])
        return embeds, pooled

    def clear_cache(self) -> None:
        """See `TextEncoders`."""
        self._cache.clear()

    def _cached(self, key: _CacheKey) -> _Encoding:
        if key in self._cache:
            self._cache.move_to_end(key)
        else:
            self._cache[key] = self._encode(key[0])
            if len(self._cache) > _MAX_CACHED:
                self._cache.popitem(last=False)
        return self._cache[key]

    def _encode(self, chunk: Chunk) -> _Encoding:
        """Return (77, width) and (projection_dim,) of one chunk.

        The embeddings are the penultimate hidden states of every encoder, concatenated.
        """
        parts = []
        for (tokenizer, encoder), tokens in zip(self._encoders, chunk, strict=True):
            text_ids = [id for id, _ in tokens]
            padding = [tokenizer.pad_token_id] * (CHUNK_TOKENS - len(tokens))
            ids = [tokenizer.bos_token_id, *text_ids, tokenizer.eos_token_id, *padding]
            output = encoder(torch.tensor([ids], device=self._device), output_hidden_states=True)
            weights = [weight for _, weight in tokens]
            parts.append(apply_emphasis(output.hidden_states[-2][0], weights))
        embeds = torch.cat(parts, dim=-1).to(dtype=encoder.dtype)
        return embeds, output[0][0]

    @contextmanager
    def _on_device(self) -> Iterator[None]:
        """Have the encoders on the device; those not kept there return to the CPU at the end."""
        try:
            if not self._keeps_on_device:
                self._move(self._device)
            yield
        finally:
            if not self._keeps_on_device:
                self._move(torch.device("cpu"))

    def _move(self, device: torch.device) -> None:
        for _, encoder in self._encoders:
            encoder.to(device)


def apply_emphasis(hidden: torch.Tensor, weights: Sequence[float]) -> torch.Tensor:
    """Return a chunk's hidden states, (77, width), with each token's multiplied by its weight.

    The mean over all is restored afterwards: AUTOMATIC1111's emphasis "Original". Start, end and
    padding tokens have weight 1. Without other weights the states are returned unchanged.
    """
    if all(weight == 1 for weight in weights):
        return hidden
    factors = torch.ones(hidden.shape[0], 1, device=hidden.device)
    factors[1 : 1 + len(weights), 0] = torch.tensor(weights, device=hidden.device)
    original = hidden.float()
    emphasized = original * factors
    return (emphasized * (original.mean() / emphasized.mean())).to(hidden.dtype)


def _tokenize(
    tokenizer: Any, sections: Sequence[Sequence[WeightedText]]
) -> tuple[tuple[Token, ...], ...]:
    """Return the chunks of one tokenizer."""
    tokens = [
        [
            (id, clamp_weight(text.weight))
            for text in section
            for id in tokenizer(text.text, add_special_tokens=False, verbose=False).input_ids
        ]
        for section in sections
    ]
    return chunk_tokens(tokens, tokenizer.get_vocab().get(",</w>"))
