"""What a UNet computes from the conditioning alone is the same at every step, and kept.

These are the keys and values of a prompt in each cross-attention, and the embedding of an image's
size and pooled prompt. diffusers computes them anew at each step: 3 % of SDXL's work at 512 x 512,
1 % at 1024 x 1024. What is kept is recognized by the tensors that it was made from: the denoiser
gives every step of a batch the same ones. So a result has the bits that it would have without.

It takes memory, 25 MB for each row of SDXL in half precision, so prompts that are longer together
than those of a full batch are not kept. Whoever changes a layer, by a LoRA for example, calls
`forget_conditioning`.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from serve_app.runtime.networks.quiet import diffusers

_processors = diffusers.models.attention_processor
_Attention, _UNet = _processors.Attention, diffusers.UNet2DConditionModel
_KeysAndValues = tuple[torch.Tensor, torch.Tensor]  # both (rows, heads, tokens, head channels)


class KeptConditioning:
    """What one UNet keeps, of one batch. Its layers are the only writers."""

    def __init__(self, max_tokens: int) -> None:
        """Keep prompts that have no more tokens in all their rows together."""
        self.max_tokens = max_tokens
        self.forget()

    def forget(self) -> None:
        """Keep nothing."""
        self._prompt: torch.Tensor | None = None
        self._by_layer: dict[nn.Module, _KeysAndValues] = {}
        self._embedding: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    @property
    def num_bytes(self) -> int:
        """The bytes that it takes."""
        pairs = self._by_layer.values()
        return sum(tensor.nbytes for pair in pairs for tensor in pair)

    def keys_and_values(self, layer: "KeepingAttention", prompt: torch.Tensor) -> _KeysAndValues:
        """Return a layer's keys and values of prompts, (rows, tokens, cross_attention_dim)."""
        if prompt is not self._prompt:  # all go first, so that their memory is there for the next
            self._prompt, self._by_layer = prompt, {}
        found = self._by_layer.get(layer)
        if found is None:
            found = layer.project(prompt)
            if prompt.shape[:2].numel() <= self.max_tokens:
                self._by_layer[layer] = found
        return found

    def embedding(
        self, unet: "KeepingUNet", pooled: torch.Tensor, ids: torch.Tensor, *others: torch.Tensor
    ) -> torch.Tensor:
        """Return the embedding, (rows, time_embed_dim), of pooled prompts and time ids."""
        kept = self._embedding
        if kept is None or kept[0] is not pooled or kept[1] is not ids:
            kept = pooled, ids, unet.embed(pooled, ids, *others)
            self._embedding = kept
        return kept[2]


class KeepingAttention(_Attention):  # type: ignore[misc, valid-type]  # diffusers has no types
    """diffusers' `Attention` with `AttnProcessor2_0`; with another processor it is as before."""

    kept: KeptConditioning  # of its UNet

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **options: Any,
    ) -> torch.Tensor:
        """Return (rows, pixels, channels) for hidden states of that shape.

        `encoder_hidden_states` are prompts, (rows, tokens, cross_attention_dim), or None in
        self-attention.
        """
        if attention_mask is not None or type(self.processor) is not _processors.AttnProcessor2_0:
            stock: torch.Tensor = super().forward(
                hidden_states, encoder_hidden_states, attention_mask, **options
            )
            return stock
        query = self._by_head(self.to_q(hidden_states))
        if encoder_hidden_states is None:
            key, value = self.project(hidden_states)
        else:
            key, value = self.kept.keys_and_values(self, encoder_hidden_states)
        attended = functional.scaled_dot_product_attention(query, key, value)
        result: torch.Tensor = self.to_out[0](attended.transpose(1, 2).flatten(2))
        return result

    def project(self, lines: torch.Tensor) -> _KeysAndValues:
        """Return keys and values of (rows, tokens, channels)."""
        return self._by_head(self.to_k(lines)), self._by_head(self.to_v(lines))

    def _by_head(self, projected: torch.Tensor) -> torch.Tensor:
        """Return (rows, heads, tokens, head channels) of (rows, tokens, channels)."""
        by_head: torch.Tensor = projected.unflatten(-1, (self.heads, -1))
        return by_head.transpose(1, 2)


class KeepingUNet(_UNet):  # type: ignore[misc, valid-type]  # likewise
    """diffusers' `UNet2DConditionModel` of SDXL."""

    kept: KeptConditioning

    def get_aug_embed(
        self,
        emb: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        added_cond_kwargs: dict[str, torch.Tensor],
    ) -> torch.Tensor:
        """Return the embedding of sizes and pooled prompts, (rows, time_embed_dim)."""
        pooled, ids = added_cond_kwargs["text_embeds"], added_cond_kwargs["time_ids"]
        return self.kept.embedding(self, pooled, ids, emb, encoder_hidden_states)

    def embed(
        self, pooled: torch.Tensor, ids: torch.Tensor, emb: torch.Tensor, prompt: torch.Tensor
    ) -> torch.Tensor:
        """Return that embedding as diffusers computes it."""
        added = {"text_embeds": pooled, "time_ids": ids}
        embedding: torch.Tensor = super().get_aug_embed(emb, prompt, added)
        return embedding


def keep_conditioning(unet: Any, max_tokens: int) -> None:
    """Let diffusers' `UNet2DConditionModel` of SDXL keep what depends on the conditioning alone.

    Prompts are kept that have no more tokens in all their rows together.
    """
    kept = KeptConditioning(max_tokens)
    unet.__class__, unet.kept = KeepingUNet, kept
    for module in unet.modules():
        if isinstance(module, KeepingAttention) or (
            type(module) is _Attention and _is_plain(module)
        ):
            module.__class__, module.kept = KeepingAttention, kept


def kept_by(unet: Any) -> KeptConditioning | None:
    """Return what a UNet keeps, if it does; of a compiled one, what its eager one does."""
    kept: KeptConditioning | None = getattr(unet, "kept", None)
    return kept


def limit_kept_conditioning(unet: Any, max_tokens: int) -> None:
    """Let a UNet that keeps prompts keep no longer ones than this."""
    if kept := kept_by(unet):
        kept.forget()
        kept.max_tokens = max_tokens


def forget_conditioning(unet: Any) -> None:
    """Drop what a UNet has kept."""
    if kept := kept_by(unet):
        kept.forget()


def kept_bytes(unet: Any) -> int:
    """Return the bytes of what a UNet has kept."""
    kept = kept_by(unet)
    return kept.num_bytes if kept else 0


def stop_keeping(unet: nn.Module) -> None:
    """Let a UNet compute as diffusers' own: undo `keep_conditioning`."""
    for module in list(unet.modules()):
        if isinstance(module, KeepingAttention | KeepingUNet):
            module.__class__ = _UNet if isinstance(module, KeepingUNet) else _Attention
            del module.kept


def _is_plain(attention: Any) -> bool:
    """Return whether an attention has only the parts that SDXL's have."""
    parts = (
        attention.spatial_norm,
        attention.group_norm,
        attention.norm_cross,
        attention.norm_q,
        attention.norm_k,
    )
    is_scaled = attention.residual_connection or attention.rescale_output_factor != 1
    return not any(parts) and not is_scaled and attention.to_out[1].p == 0
