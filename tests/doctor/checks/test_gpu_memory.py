"""What SDXL takes, by its real numbers; and the allowance, counted on its real networks."""

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from serve_app.core.diffusion.spec import Stage
from serve_app.doctor.checks.gpu_memory import OVERHEAD, PICTURE, ROW, Replica, Weights, placed
from tests.doctor.conftest import GIB

BASE = {
    "unet": 2_567_463_684,
    "vae": 83_653_863,
    "text_encoder": 123_060_480,
    "text_encoder_2": 694_659_840,
}
REFINER = {"unet": 2_259_526_660, "vae": 83_653_863, "text_encoder_2": 694_659_840}


ONE = Weights(Stage.BASE, BASE, 1024)
POLISH = Weights(Stage.REFINER, REFINER, 1024)


def base(share: float = 1, models: int = 1) -> Replica:
    return Replica((ONE,) * models, share, room=models)


def refiner(share: float = 1) -> Replica:
    return Replica((POLISH,), share)


def both(room: int = 1, bases: int = 1) -> Replica:
    return Replica((*(ONE,) * bases, POLISH), 1, room, parked=1)


def test_weights_and_work_follow_precision_and_images() -> None:
    pixels = 1024 * 1024
    weights = sum(BASE.values())
    one = base().need(1, "fp16", vae_half=True)
    assert one == 2 * weights + pixels * (2 * ROW * 2 + PICTURE * 2) + OVERHEAD
    assert base().need(2, "fp16", vae_half=True) - one == pixels * 2 * ROW * 2
    assert base().need(1, "fp32", vae_half=True) - OVERHEAD == 2 * (one - OVERHEAD)
    assert base().need(1, "bf16", vae_half=True) == one
    assert base(models=3).need(1, "fp16", vae_half=True) - one == 2 * 2 * weights


def test_a_vae_that_can_t_run_in_bf16_runs_in_fp32_never_in_fp16() -> None:
    more = base().need(1, "fp16", vae_half=False) - base().need(1, "fp16", vae_half=True)
    assert more == 2 * BASE["vae"] + 2 * PICTURE * 1024 * 1024


@pytest.mark.parametrize(
    ("card", "replicas", "images", "fits"),
    [  # the guide's rows: base alone on 12 GB with 1 or 2 images; the refiner too from 24 GB on
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
def test_the_guide_s_cards(card: int, replicas: list[Replica], images: int, fits: bool) -> None:
    need = sum(one.need(images, "fp16", vae_half=True) for one in replicas)
    assert (need <= card * GIB) is fits


def test_of_two_that_take_turns_the_larger_counts_and_on_the_host_both_do() -> None:
    half = {"vae_half": True}
    assert both().need(2, "fp16", **half) == base().need(2, "fp16", **half)
    together = both(room=2).need(2, "fp16", **half)
    assert together - both().need(2, "fp16", **half) == 2 * sum(REFINER.values())
    assert both().need(2, "fp16", on_host=True, **half) == together
    assert both(room=2).need(2, "fp16", on_host=True, **half) == together
    assert [one.takes_turns for one in (both(), both(2), both(2, bases=2), base(models=2))] == [
        *(True, False),
        *(True, False),
    ]
    of_three = both(bases=2).need(2, "fp16", on_host=True, **half)
    assert of_three == base(models=2).need(2, "fp16", **half)


def test_replicas_go_where_a_card_has_room() -> None:
    assert placed([base(), refiner()], 2) == ((base(),), (refiner(),))
    assert placed([base(), refiner()], 1) is None
    assert placed([base(0.5), refiner(0.5)], 1) == ((base(0.5), refiner(0.5)),)
    assert placed([base(0.3), refiner(), base(0.3)], 2) == ((refiner(),), (base(0.3), base(0.3)))
    assert placed([base(1 / 3)] * 3, 1) == ((base(1 / 3),) * 3,)
    assert placed([base(0)] * 2, 0) is None


class Alive(TorchDispatchMode):
    """Counts the bytes of tensors as they come and go; on the meta device nothing is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._seen: dict[int, int] = {}

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
            if key not in self._seen:
                self._seen[key] = storage.nbytes()
                self._now += storage.nbytes()
                self.peak = max(self.peak, self._now)
                weakref.finalize(storage, self._gone, key)
        return out

    def _gone(self, key: int) -> None:
        self._now -= self._seen.pop(key)


class Fused:
    """An attention processor that makes what fused attention makes: its output, no scores."""

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
        del query, key, value
        if len(shape) == 4:
            hidden = hidden.transpose(-1, -2).reshape(shape)
        return hidden + residual if attention.residual_connection else hidden


def unet(stage: Stage) -> Any:
    """SDXL's own UNet of a stage, without weights."""
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
@pytest.mark.parametrize(("stage", "values"), [(Stage.BASE, 79), (Stage.REFINER, 95)])
def test_a_row_takes_what_is_allowed_for_it(stage: Stage, values: int) -> None:
    peaks = []
    with torch.device("meta"), torch.no_grad():
        network = unet(stage).half().eval()
        network.set_attn_processor(Fused())
        assert (
            sum(p.numel() for p in network.parameters())
            == (BASE if stage is Stage.BASE else REFINER)["unet"]
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
            with Alive() as alive:
                network(*inputs, added_cond_kwargs=added, return_dict=False)
            peaks.append(alive.peak)
    per_row = (peaks[1] - peaks[0]) / 6 / 2 / 1024**2
    assert round(per_row) == values <= ROW


@pytest.mark.long
def test_a_picture_takes_what_is_allowed_for_it() -> None:
    with torch.device("meta"), torch.no_grad():
        vae: Any = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        ).eval()
        vae.set_attn_processor(Fused())
        assert sum(p.numel() for p in vae.parameters()) == BASE["vae"]
        with Alive() as alive:
            vae.decode(torch.empty(1, 4, 128, 128), return_dict=False)
    assert 0.99 * PICTURE < alive.peak / 4 / 1024**2 <= PICTURE
