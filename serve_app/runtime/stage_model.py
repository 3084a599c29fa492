"""`StageModel`: the networks of one stage, and the turns that run them.

No scheduler, no threads. Samples come in and go out as values. What is expensive to make again
(conditioning, noise generators) is kept by the samples' ids until `forget`.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice

import numpy as np
import torch

from serve_app.core.diffusion.extensions import ExtensionKey, ExtensionRef
from serve_app.core.diffusion.numeric_profile import NumericProfile
from serve_app.core.diffusion.sample import (
    with_latents,
    with_profile,
    with_prompt_info,
    with_warnings,
)
from serve_app.core.diffusion.spec import StepCache
from serve_app.core.errors import NumericFault, OutputNotFinite, ProfileChanged, SafetyBlock
from serve_app.core.scheduling.memory_plan import MemoryPlan
from serve_app.core.scheduling.work import BatchSize
from serve_app.core.service.moderation import ImageFilter
from serve_app.core.service.warm_ups import OnWarmUp
from serve_app.runtime.batch_invariance import check_batch_invariance
from serve_app.runtime.lane_counts import Batch, LaneChoice, LaneCounts, LaneKey, made_up_batch
from serve_app.runtime.live_sample import DeviceSample, row_count, row_inputs
from serve_app.runtime.memory.device import Device
from serve_app.runtime.networks.conditioning import ScheduledConditioning
from serve_app.runtime.networks.denoiser import DenoiserInput
from serve_app.runtime.networks.step_cache import StepFeatures
from serve_app.runtime.networks.vae import RgbImage
from serve_app.runtime.noise import Noise
from serve_app.runtime.overflow import overflowing_extensions
from serve_app.runtime.parts import Offloadable, Parts
from serve_app.runtime.self_test import SelfTest
from serve_app.runtime.solver_batch import advance

logger = logging.getLogger("aura.runtime")

_WEAK = 1 / 64  # weight at which an extension is checked that overflows at weight 1


@dataclass(slots=True)
class _SampleState:
    """What is kept for a sample between its turns."""

    noise: Noise
    conditioning: ScheduledConditioning | None = None
    features: StepFeatures | None = None  # with a step cache


class StageModel:
    """The networks of a stage behind four verbs: condition, encode, step, decode."""

    def __init__(
        self,
        *,
        profile: NumericProfile,
        memory_plan: MemoryPlan,
        device: Device,
        parts: Parts,
        images: int | None = None,
        lane_counts: LaneCounts | None = None,
        safety: ImageFilter | None = None,
        offloadable: Offloadable | None = None,
        warm_up: Callable[[OnWarmUp], None] = lambda on_progress: None,
    ) -> None:
        self.profile = profile
        self.memory_plan = memory_plan
        self._images = images or memory_plan.images
        self.device = device
        self._parts = parts
        self._extensions, self.latent_to_rgb = parts.extensions, parts.latent_to_rgb
        self._self_test: SelfTest | None = None
        self._safety = safety
        self._offloadable = offloadable
        self.warm_up = warm_up  # compiles what is compiled, before the model is ready
        self._states: dict[str, _SampleState] = {}
        only = (profile.lanes,) if profile.strict else ()
        self._lane_counts = lane_counts or LaneCounts(parts.denoiser, only)

    @property
    def batch_size(self) -> BatchSize:
        """How many samples step together, and in how many rows."""
        return BatchSize(self._images, self._lane_counts.counts)

    @property
    def attached_extensions(self) -> tuple[ExtensionKey, ...]:
        """The extensions that samples may use now."""
        return self._extensions.attached

    def attach(self, key: ExtensionKey, evict: Sequence[ExtensionKey]) -> None:
        """Attach an extension, after `evict` has left memory.

        Raises `OperatorError` when it does not fit, or breaks batch invariance.
        """
        self._extensions.detach(evict)
        self._extensions.attach(key)
        try:
            self._check_extension(key)
        except Exception:  # out of memory too: an unchecked extension is not used
            self._extensions.detach([key])
            raise

    @torch.inference_mode()
    def condition(self, sample: DeviceSample) -> DeviceSample:
        """Encode the sample's prompts; draw the first latents of an image that starts from noise.

        Raises `ProfileChanged` when another numeric profile, or another model, began it, and
        `NumericFault` when the prompts' embeddings are not finite.
        """
        self._check_profile(sample)
        state, extensions = self._state_of(sample), sample.active_extensions
        self._extensions.activate(extensions, row_inputs([sample]))
        conditioning = self._parts.conditioner.condition(sample.spec, extensions, sample.step)
        if not conditioning.is_finite:
            raise NumericFault("the prompt's embeddings are not finite (NaN or infinite)")
        state.conditioning = conditioning
        sample = with_profile(sample, self.profile.name)
        sample = with_prompt_info(sample, conditioning.chunks, conditioning.warnings)
        if sample.latents is not None or sample.needs_encoding:
            return sample
        noise = state.noise.draw(0, self.device.torch_device)
        return with_latents(sample, noise * sample.schedule.init_noise_sigma, noise_draws=1)

    @torch.inference_mode()
    def encode(self, sample: DeviceSample) -> DeviceSample:
        """Encode the initial image to latents, with the noise of where it enters the schedule.

        Draw 0 samples the VAE's posterior and draw 1 is the starting noise, in diffusers' order.
        Raises `NumericFault` when the latents are not finite.
        """
        if sample.inputs.init_image is None:
            raise ValueError(f"sample {sample.id} has no initial image")
        spec, draw = sample.spec, self._state_of(sample).noise.draw
        image = np.frombuffer(sample.inputs.init_image, np.uint8).reshape(
            spec.height, spec.width, 3
        )
        latents = self._parts.image_codec.encode(image, draw(0, self.device.torch_device))
        noise = draw(1, self.device.torch_device)
        noised = latents + sample.schedule.sigmas[sample.index] * noise
        self.device.synchronize()
        return with_latents(sample, noised, noise_draws=2)

    def knows_lanes(self, samples: Sequence[DeviceSample]) -> bool:
        """Return whether `choose_lanes` needs no run of the network, nor the step a compilation."""
        return self._lane_counts.known_lanes(LaneKey.of(samples[0]), row_count(samples)) is not None

    @torch.inference_mode()
    def choose_lanes(self, samples: Sequence[DeviceSample]) -> LaneChoice:
        """Choose the rows of the UNet call in which these samples step, with the bits of any other.

        The first samples of a size, prompt length and set of extensions take a while: see
        `LaneCounts`.
        """
        key, rows = LaneKey.of(samples[0]), row_count(samples)
        if not self.profile.strict:
            return LaneChoice(rows, is_new=self._lane_counts.known_lanes(key, rows) is None)
        batch = partial(self._made_up_batch, samples)
        return self._lane_counts.choose(key, rows, batch)

    @torch.inference_mode()
    def step(
        self,
        samples: Sequence[DeviceSample],
        lanes: int,
        observe: Callable[[torch.Tensor], None] = lambda denoised: None,
    ) -> list[DeviceSample]:
        """Take one step of every sample, in one UNet call with `lanes` rows.

        A GPU may still be at work when this returns: see `Device.record_event`. `observe` gets what
        is predicted of each sample, (samples, 4, h/8, w/8), and must not wait for the device.
        Every row has its own solver weights and its own noise, so that a sample's bits do not
        depend on the other samples in the call.
        """
        x, inputs = self._batch(samples)
        denoised = self._parts.denoiser(x, inputs, lanes)
        observe(denoised)
        noises = [self._draw_noise(sample) for sample in samples]  # while a GPU computes
        return advance(samples, denoised, noises)

    @torch.inference_mode()
    def decode(self, sample: DeviceSample) -> tuple[DeviceSample, RgbImage]:
        """Return a sample that has taken its last step, with warnings, and its image.

        Raises `SafetyBlock` when the filter refuses the image, `NumericFault` when latents or
        pixels are not finite, and `ProfileChanged` as `condition` does.
        """
        self._check_profile(sample)
        decoded = self._parts.image_codec.decode(_latents(sample))
        image, warnings = decoded.image, decoded.warnings
        if self._safety and self._safety.refuses_image(image):
            raise SafetyBlock("the safety filter refuses the picture that came of this request")
        if _has_one_colour(image):
            colour = image[0, 0].tobytes().hex()
            warnings += (f"the image of seed {sample.spec.seed} is #{colour} everywhere",)
        return with_warnings(with_profile(sample, self.profile.name), *warnings), image

    def offload(self) -> None:
        """Move the networks off the device.

        The model can't run until `restore`, which changes neither its memory plan nor its numeric
        profile.
        """
        if self._offloadable is not None:
            self._offloadable.offload()

    def restore(self) -> None:
        """Bring the networks back, with the same bytes.

        Raises what the device raises when there is no memory; the model then stays offloaded.
        """
        if self._offloadable is not None:
            self._offloadable.restore()

    def forget_steps(self, samples: Sequence[DeviceSample]) -> None:
        """Drop what a failed step may have left unmade; who would reuse deep features must end."""
        self._parts.denoiser.forget()
        for state in (self._states[sample.id] for sample in samples):
            state.features = state.features and StepFeatures()

    def forget(self, id: str) -> None:
        """Drop what is kept for a sample."""
        self._states.pop(id, None)

    def check_batch_invariance(self, extensions: tuple[ExtensionRef, ...] = ()) -> None:
        """See `batch_invariance`. Raises `OperatorError`."""
        check_batch_invariance(self._parts, self.profile, self.device, extensions)

    def record_self_test(self) -> None:
        """Make the picture that `failed_self_test` compares with.

        Raises `OutputNotFinite` if it can't be made.
        """
        self._self_test = SelfTest(self._parts, self.profile, self.device)

    def failed_self_test(self) -> str:
        """Return why the model no longer makes the recorded picture; "" if it does."""
        return self._self_test.failure() if self._self_test else ""

    def overflowing_extensions(self, sample: DeviceSample) -> tuple[ExtensionRef, ...]:
        """See `overflow`."""
        return overflowing_extensions(self._parts, self.profile, self.device, sample)

    def _check_extension(self, key: ExtensionKey) -> None:
        """Check that batch invariance holds with an extension.

        One that overflows at weight 1 is checked at a weight that some image may ask for: kernels
        split their work alike whatever the weight is.
        """
        try:
            self.check_batch_invariance((ExtensionRef(*key),))
        except OutputNotFinite as error:
            weak = ExtensionRef(*key, weight=_WEAK)
            try:
                self.check_batch_invariance((weak,))
            except OutputNotFinite:
                raise error.about(f"with the {key} at any weight") from None
            logger.warning("the %s overflows %s at weight 1", key, self.profile.dtype)

    def _check_profile(self, sample: DeviceSample) -> None:
        if sample.profile not in (None, self.profile.name):
            raise ProfileChanged(
                f"made under {sample.profile}, this replica runs {self.profile.name}"
            )

    def _state_of(self, sample: DeviceSample) -> _SampleState:
        noise = Noise(sample.spec.seed, sample.spec.latent_shape)
        features = None if sample.spec.cache is StepCache.OFF else StepFeatures()
        return self._states.setdefault(sample.id, _SampleState(noise, features=features))

    def _batch(self, samples: Sequence[DeviceSample]) -> Batch:
        """Return what the denoiser gets; latents are (samples, 4, h/8, w/8)."""
        self._extensions.activate(samples[0].active_extensions, row_inputs(samples))
        x = torch.stack([_latents(sample) for sample in samples])
        return x, [self._denoiser_input(sample) for sample in samples]

    def _made_up_batch(self, samples: Sequence[DeviceSample], rows: int, different: int) -> Batch:
        first, inputs = samples[0], list(islice(cycle(row_inputs(samples)), different))
        self._extensions.activate(first.active_extensions, list(islice(cycle(inputs), rows)))
        like = self._denoiser_input(first)
        deep = like.features.positive if like.features and like.shallow else None
        row, shape = like.conditioning.positive, first.spec.latent_shape
        return made_up_batch(row, shape, self.device.torch_device, rows, different, deep=deep)

    def _denoiser_input(self, sample: DeviceSample) -> DenoiserInput:
        state, index, kind = self._states[sample.id], sample.index, sample.step_kind
        if state.conditioning is None:
            raise ValueError(f"sample {sample.id} was not conditioned")
        sigma, timestep = sample.schedule.sigmas[index], sample.schedule.timesteps[index]
        conditioning = state.conditioning.at(sample.step, guided=kind.rows > 1)
        return DenoiserInput(sigma, timestep, conditioning, state.features, kind.shallow)

    def _draw_noise(self, sample: DeviceSample) -> torch.Tensor | None:
        """Return the noise of a stochastic sampler's step; None for the others."""
        if not sample.spec.sampler.definition.is_stochastic:
            return None
        noise = self._states[sample.id].noise
        return noise.draw(sample.noise_draws, self.device.torch_device)


def _has_one_colour(image: RgbImage) -> bool:
    return bool((image[0] == image[0, 0]).all() and (image == image[0, 0]).all())


def _latents(sample: DeviceSample) -> torch.Tensor:
    if sample.latents is None:
        raise ValueError(f"sample {sample.id} has no latents yet")
    return sample.latents
