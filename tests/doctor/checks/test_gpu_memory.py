"""The memory that SDXL needs, by its real sizes; the allowance, counted on its real networks."""

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from serve_app.core.diffusion.spec import Stage
from serve_app.doctor.checks.gpu_memory import (
    DECODE_VALUES,
    PROCESS_OVERHEAD,
    UNET_VALUES,
    Replica,
    assign_to_gpus,
)
from tests.support.machines import GIB
from tests.support.sdxl_sizes import BASE_PARAMETERS, REFINER_PARAMETERS, base, both, refiner


def fp16_bytes(replica: Replica, *, on_host: bool = False) -> int:
    return replica.total_bytes(2, "fp16", vae_half=True, on_host=on_host)


def test_weights_and_working_memory_grow_with_precision_and_images() -> None:
    pixels = 1024 * 1024
    weights = sum(BASE_PARAMETERS.values())
    one_image = base().total_bytes(1, "fp16", vae_half=True)
    assert (
        one_image
        == 2 * weights + pixels * (2 * UNET_VALUES * 2 + DECODE_VALUES * 2) + PROCESS_OVERHEAD
    )
    assert base().total_bytes(2, "fp16", vae_half=True) - one_image == pixels * 2 * UNET_VALUES * 2
    assert base().total_bytes(1, "fp32", vae_half=True) - PROCESS_OVERHEAD == 2 * (
        one_image - PROCESS_OVERHEAD
    )
    assert base().total_bytes(1, "bf16", vae_half=True) == one_image
    assert base(models=3).total_bytes(1, "fp16", vae_half=True) - one_image == 2 * 2 * weights


def test_a_vae_that_cannot_run_in_bf16_runs_in_fp32() -> None:
    difference = base().total_bytes(1, "fp16", vae_half=False) - base().total_bytes(
        1, "fp16", vae_half=True
    )
    assert difference == 2 * BASE_PARAMETERS["vae"] + 2 * DECODE_VALUES * 1024 * 1024


@pytest.mark.parametrize(
    ("gpu_memory", "replicas", "images", "fits"),
    [  # the base alone fits in 12 GB with one or two images, base and refiner from 24 GB on
        (12, [base()], 1, True),
        (12, [base()], 2, True),
        (16, [base()], 4, True),
        (16, [refiner()], 4, True),
        (24, [base(), refiner()], 4, True),
        (16, [base(), refiner()], 1, False),
        (12, [both()], 2, True),  # in turn
        (8, [both()], 1, False),
        (8, [base()], 1, False),
    ],
)
def test_usual_gpus_hold_what_they_are_recommended_for(
    gpu_memory: int, replicas: list[Replica], images: int, fits: bool
) -> None:
    needed = sum(replica.total_bytes(images, "fp16", vae_half=True) for replica in replicas)
    assert (needed <= gpu_memory * GIB) is fits


def test_of_models_that_take_turns_the_larger_counts_and_on_the_host_both() -> None:
    assert fp16_bytes(both()) == fp16_bytes(base())
    together = fp16_bytes(both(max_loaded=2))
    assert together - fp16_bytes(both()) == 2 * sum(REFINER_PARAMETERS.values())
    assert fp16_bytes(both(), on_host=True) == together
    assert fp16_bytes(both(max_loaded=2), on_host=True) == together
    assert both().swaps_stages
    assert both(2, bases=2).swaps_stages
    assert not both(2).swaps_stages
    assert not base(models=2).swaps_stages
    assert fp16_bytes(both(bases=2), on_host=True) == fp16_bytes(base(models=2))


def test_replicas_go_to_the_first_gpu_with_a_free_share() -> None:
    assert assign_to_gpus([base(), refiner()], 2) == ((base(),), (refiner(),))
    assert assign_to_gpus([base(), refiner()], 1) is None
    assert assign_to_gpus([base(0.5), refiner(0.5)], 1) == ((base(0.5), refiner(0.5)),)
    assert assign_to_gpus([base(0.3), refiner(), base(0.3)], 2) == (
        (refiner(),),
        (base(0.3), base(0.3)),
    )
    assert assign_to_gpus([base(1 / 3)] * 3, 1) == ((base(1 / 3),) * 3,)
    assert assign_to_gpus([base(0)] * 2, 0) is None


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of live tensors; on the meta device nothing is computed."""

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        self.peak = self._live = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self,
        function: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self._sizes:
                self._sizes[key] = storage.nbytes()
                self._live += storage.nbytes()
                self.peak = max(self.peak, self._live)
                weakref.finalize(storage, self._free, key)
        return out

    def _free(self, key: int) -> None:
        self._live -= self._sizes.pop(key)


class FusedAttention:
    """An attention processor that allocates what fused attention does: its output, no scores.

    Keys and values of a prompt are kept, as by `KeepingAttention`.
    """

    def __init__(self) -> None:
        self.kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(
        self,
        attention: Any,
        hidden: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: None = None,
        temb: None = None,
    ) -> torch.Tensor:
        residual, shape = hidden, hidden.shape
        if hidden.ndim == 4:
            hidden = hidden.view(shape[0], shape[1], -1).transpose(1, 2)
        if attention.group_norm is not None:
            hidden = attention.group_norm(hidden.transpose(1, 2)).transpose(1, 2)
        query = attention.to_q(hidden)
        source = hidden if encoder_hidden_states is None else encoder_hidden_states
        key, value = attention.to_k(source), attention.to_v(source)
        hidden = attention.to_out[0](torch.empty_like(query))
        if encoder_hidden_states is not None:
            self.kept.append((key, value))
        del query, key, value
        if len(shape) == 4:
            hidden = hidden.transpose(-1, -2).reshape(shape)
        return hidden + residual if attention.residual_connection else hidden


def unet(stage: Stage) -> Any:
    """Return SDXL's own UNet of a stage."""
    shared = {
        "addition_embed_type": "text_time",
        "use_linear_projection": True,
        "addition_time_embed_dim": 256,
    }
    if stage is Stage.BASE:
        return UNet2DConditionModel(
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=[1, 2, 10],
            attention_head_dim=[5, 10, 20],
            cross_attention_dim=2048,
            projection_class_embeddings_input_dim=2816,
            **shared,
        )
    return UNet2DConditionModel(
        block_out_channels=(384, 768, 1536, 1536),
        down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * 2, "DownBlock2D"),
        up_block_types=("UpBlock2D", *["CrossAttnUpBlock2D"] * 2, "UpBlock2D"),
        transformer_layers_per_block=4,
        attention_head_dim=(6, 12, 24, 24),
        cross_attention_dim=1280,
        projection_class_embeddings_input_dim=2560,
        **shared,
    )


@pytest.mark.long
@pytest.mark.parametrize(("stage", "values"), [(Stage.BASE, 91), (Stage.REFINER, 102)])
def test_a_unet_row_needs_no_more_than_the_allowance(stage: Stage, values: int) -> None:
    peaks = []
    with torch.device("meta"), torch.no_grad():
        network = unet(stage).half().eval()
        assert (
            sum(p.numel() for p in network.parameters())
            == (BASE_PARAMETERS if stage is Stage.BASE else REFINER_PARAMETERS)["unet"]
        )
        for rows in (2, 8):
            inputs = (
                torch.empty(rows, 4, 128, 128, dtype=torch.half),
                torch.empty(rows),
                torch.empty(rows, 77, network.config.cross_attention_dim, dtype=torch.half),
            )
            added = {
                "text_embeds": torch.empty(rows, 1280, dtype=torch.half),
                "time_ids": torch.empty(rows, 6 if stage is Stage.BASE else 5, dtype=torch.half),
            }
            network.set_attn_processor(FusedAttention())
            with LiveBytes() as live:
                network(*inputs, added_cond_kwargs=added, return_dict=False)
            peaks.append(live.peak)
    per_row = (peaks[1] - peaks[0]) / 6 / 2 / 1024**2
    assert round(per_row) == values <= UNET_VALUES


@pytest.mark.long
def test_decoding_an_image_needs_no_more_than_the_allowance() -> None:
    with torch.device("meta"), torch.no_grad():
        vae: Any = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        ).eval()
        vae.set_attn_processor(FusedAttention())
        assert sum(p.numel() for p in vae.parameters()) == BASE_PARAMETERS["vae"]
        with LiveBytes() as live:
            vae.decode(torch.empty(1, 4, 128, 128), return_dict=False)
    assert 0.99 * DECODE_VALUES < live.peak / 4 / 1024**2 <= DECODE_VALUES
