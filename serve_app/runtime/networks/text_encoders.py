"""A prompt to what the networks are told: tokens in chunks, each chunk encoded alone and weighed.

Knows no guidance, latents or samples. One chunk per call, always: the number of texts in a call
moves the last bits of each. Equals AUTOMATIC1111's web UI at its defaults (comma_padding_backtrack
20, emphasis "Original", which weighs each encoder's chunk by itself), but for what `core.prompt`
says of the syntax and of the range of weights; over the encoding of stock diffusers, which it is to
the bit for a prompt of one chunk without weights. The pooled embedding is the first chunk's, before
any weight: so there, and in ComfyUI.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Protocol

import torch

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
from serve_app.core.diffusion.spec import Lora

_REMEMBERED = 128  # chunks; about 0.3 MB each for SDXL in fp16
_QUOTED = 200  # characters of what was left out, in a warning

Chunk = tuple[tuple[Token, ...], ...]  # one encoder's tokens beside the other's
_Worded = tuple[Chunk, tuple[Lora, ...]]  # and what the encoders wear


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """A prompt in tokens, at least one chunk, and what its asker should know of it."""

    chunks: tuple[Chunk, ...]
    warnings: tuple[str, ...]


class TextEncoders(Protocol):
    """What a stage's conditioner reads with. The tests' double is another."""

    def tokenize(self, prompt: str, name: str) -> TokenizedPrompt:
        """The prompt in tokens; `name` is what warnings call it."""

    def encode(
        self, reading: TokenizedPrompt, chunks: int, loras: tuple[Lora, ...] = ()
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings (77 * chunks, width) and pooled (projection,); chunks of "" fill it up.
        `loras` are those that the text encoders wear."""


class ClipTextEncoders:
    """The contract over a checkpoint's own tokenizers and text encoders, the pooling one last."""

    def __init__(self, encoders: Sequence[tuple[Any, Any]], device: torch.device) -> None:
        self._encoders = tuple(encoders)  # CLIPTokenizer and CLIPTextModel; two, or one
        self._device = device
        self._stays = True
        self._empty: Chunk = ((),) * len(self._encoders)
        self._known: OrderedDict[_Worded, tuple[torch.Tensor, torch.Tensor]] = OrderedDict()

    @property
    def networks(self) -> tuple[Any, ...]:
        """The text encoders."""
        return tuple(encoder for _, encoder in self._encoders)

    def keep_on_device(self, *, on_device: bool) -> None:
        """The encoders are on the device from now on; if not, they visit it while they work."""
        self._stays = on_device
        self._move(self._device if on_device else torch.device("cpu"))

    def tokenize(self, prompt: str, name: str) -> TokenizedPrompt:
        """See `Prompts`. What is over `MOST_CHUNKS` is left out, and warned of."""
        sections, warnings = parse(prompt), []
        if any(
            phrase.weight != clamp_weight(phrase.weight) for part in sections for phrase in part
        ):
            low, high = WEIGHT_RANGE
            warnings.append(f"weights in the {name} were kept between {low:g} and {high:g}")
        columns = [_in_tokens(tokenizer, sections) for tokenizer, _ in self._encoders]
        chunks = tuple(zip_longest(*columns, fillvalue=()))
        if rest := chunks[MAX_CHUNKS:]:
            ids = [id for chunk in rest for id, _ in chunk[-1]]
            text = self._encoders[-1][0].decode(ids)
            quoted = text if len(text) <= _QUOTED else f"{text[:_QUOTED]}…"
            warnings.append(
                f"the {name} was cut after {MAX_CHUNKS} chunks of {CHUNK_TOKENS} tokens: "
                f'{len(ids)} tokens were left out, "{quoted}"'
            )
        return TokenizedPrompt(chunks[:MAX_CHUNKS], tuple(warnings))

    def encode(
        self, reading: TokenizedPrompt, chunks: int, loras: tuple[Lora, ...] = ()
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Prompts`."""
        empty = [self._empty] * (chunks - len(reading.chunks))
        filled = [(chunk, loras) for chunk in (*reading.chunks, *empty)]
        with nullcontext() if set(filled) <= set(self._known) else self._on_device():
            encoded = [self._encoded(worded) for worded in filled]
        embeds, pooled = encoded[0]
        if len(encoded) > 1:
            embeds = torch.cat([one for one, _ in encoded])
        return embeds, pooled

    def _encoded(self, worded: _Worded) -> tuple[torch.Tensor, torch.Tensor]:
        if worded in self._known:
            self._known.move_to_end(worded)
        else:
            self._known[worded] = self._encode(worded[0])
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return self._known[worded]

    def _encode(self, chunk: Chunk) -> tuple[torch.Tensor, torch.Tensor]:
        """(77, width) and (projection,): the last layer but one of every encoder, side by side."""
        parts = []
        for (tokenizer, encoder), tokens in zip(self._encoders, chunk, strict=True):
            padding = [tokenizer.pad_token_id] * (CHUNK_TOKENS - len(tokens))
            inside = [id for id, _ in tokens]
            ids = [tokenizer.bos_token_id, *inside, tokenizer.eos_token_id, *padding]
            told = encoder(torch.tensor([ids], device=self._device), output_hidden_states=True)
            parts.append(
                apply_emphasis(told.hidden_states[-2][0], [weight for _, weight in tokens])
            )
        embeds = torch.cat(parts, dim=-1).to(dtype=encoder.dtype)
        return embeds, told[0][0]

    @contextmanager
    def _on_device(self) -> Iterator[None]:
        """The encoders are on the device, and those that only visit it leave again."""
        try:
            if not self._stays:
                self._move(self._device)
            yield
        finally:
            if not self._stays:
                self._move(torch.device("cpu"))

    def _move(self, device: torch.device) -> None:
        for _, encoder in self._encoders:
            encoder.to(device)


def apply_emphasis(hidden: torch.Tensor, weights: Sequence[float]) -> torch.Tensor:
    """A chunk's hidden states, (77, width), each token's times its weight, all brought back to the
    mean that they had. Start, end and padding weigh 1; without other weights nothing changes."""
    if all(weight == 1 for weight in weights):
        return hidden
    rows = torch.ones(hidden.shape[0], 1, device=hidden.device)
    rows[1 : 1 + len(weights), 0] = torch.tensor(weights, device=hidden.device)
    plain = hidden.float()
    moved = plain * rows
    return (moved * (plain.mean() / moved.mean())).to(hidden.dtype)


def _in_tokens(
    tokenizer: Any, sections: Sequence[Sequence[WeightedText]]
) -> tuple[tuple[Token, ...], ...]:
    tokens = [
        [
            (id, clamp_weight(phrase.weight))
            for phrase in section
            for id in tokenizer(phrase.text, add_special_tokens=False, verbose=False).input_ids
        ]
        for section in sections
    ]
    return chunk_tokens(tokens, tokenizer.get_vocab().get(",</w>"))
