"""`fit_lanes`: how many images of a model step together, and in which numbers of rows."""

import logging
from collections.abc import Callable

from serve_app.core.diffusion.numeric_profile import NumericProfile
from serve_app.core.scheduling.memory_plan import halvings
from serve_app.runtime.batch_invariance import check_batch_invariance
from serve_app.runtime.lane_counts import IsReady, LaneCounts, always_ready, lane_counts_for
from serve_app.runtime.memory.device import Device
from serve_app.runtime.parts import Parts
from serve_app.runtime.proof_file import Proof, ProofFile

logger = logging.getLogger("aura.runtime")


def fit_lanes(
    parts: Parts,
    device: Device,
    profile_of: Callable[[int], NumericProfile],
    images: int,
    *,
    strict: bool,
    proofs: ProofFile | None = None,
    is_ready: IsReady = always_ready,
) -> tuple[int, NumericProfile, LaneCounts]:
    """Return the images that step together, their numeric profile and its numbers of rows.

    They are `images`, or half of them and so on, where so many rows have other bits than the two of
    a lone guided image: padding would cost that image more than a larger batch saves. If no two
    images can step with the bits of one, they are `images`, and every step is padded.
    `profile_of` returns the profile with so many lanes. Batch invariance is checked unless it is
    among the `proofs`; `is_ready` is for `LaneCounts`. Raises what `check_batch_invariance` raises.
    """
    fits = []
    for fewer in halvings(images):
        counts = lane_counts_for(fewer, strict=strict)
        profile = profile_of(max(counts, default=0))
        proved = _prove(parts, profile, device, counts, proofs, is_ready)
        fits.append((fewer, profile, proved))
        if _keeps_two(proved) or fewer == 2:
            break
    fit = fits[-1] if _keeps_two(fits[-1][2]) else fits[0]
    if fit[0] < images:
        logger.info(
            "%d images step together, not %d: more rows would change a lone image's bits",
            fit[0],
            images,
        )
    return fit


def _keeps_two(proved: LaneCounts) -> bool:
    """Return whether a lone guided image needs no padding."""
    return not proved.counts or 2 in proved.counts


def _prove(
    parts: Parts,
    profile: NumericProfile,
    device: Device,
    counts: tuple[int, ...],
    proofs: ProofFile | None,
    is_ready: IsReady,
) -> LaneCounts:
    """Check batch invariance, and return the numbers of lanes that keep it in small images."""
    known = proofs.read(profile) if proofs else None
    proof = known or Proof(check_batch_invariance(parts, profile, device, counts=counts))
    if proofs and profile.strict and not known:
        proofs.write(profile, proof)

    def remember(name: str, answer: bool) -> None:
        if proofs:
            proofs.write(profile, Proof(proof.lane_counts, {name: answer}))

    return LaneCounts(
        parts.denoiser,
        proof.lane_counts,
        known=proof.answers,
        on_answer=remember,
        is_ready=is_ready,
    )
