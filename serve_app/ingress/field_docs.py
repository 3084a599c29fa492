"""What the fields of requests mean, in the words of the API's description, with examples.

Doors share most fields, some under other names, so their meaning is told once. Ranges, lengths and
defaults are not repeated here: `openapi` adds them from the schemas. Every example works on the
demo; those that depend on the checkpoints of a service come from `service_examples`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serve_app.core.diffusion.extensions import LORA
from serve_app.core.service.info import ServiceInfo


@dataclass(frozen=True, slots=True)
class FieldDoc:
    """The meaning of a field, in sentences, and an example; None where only the service has one."""

    meaning: str
    example: Any = None


_PROMPT = FieldDoc(
    "What the image shows. Weights, BREAK and changes on the way as in AUTOMATIC1111's web UI: "
    "`(more:1.3)`, `[less]`, `[a red circle:a blue circle:0.5]` at half of the steps, `[red|blue]` "
    "in turns.",
    "a large yellow star on a black background",
)
_NEGATIVE_PROMPT = FieldDoc(
    "What the image should not show. Without effect where guidance is off. Default: absent.",
    "a blue circle",
)
_STEPS = FieldDoc(
    "Number of denoising steps: more take longer and add detail. Default: the model's own, 30 "
    "unless it is distilled.",
    20,
)
_GUIDANCE = FieldDoc(
    "Classifier-free guidance scale, without a unit: how strongly the prompt is enforced. At 1 or "
    "below guidance is off, which halves the work. Default: the model's own, else from "
    "`temperature`.",
    6.9,
)
SHARED: Mapping[str, FieldDoc] = {
    "guidanceInterval": FieldDoc(
        "The noise levels between which guidance is on, as [low, high] in sigma: at steps with "
        "low < sigma <= high. The others take half the work. For SDXL, Kynkäänniemi et al. 2024 "
        "use [0.28, 5.42]; [0, 10000] is every step. Without effect where guidance is off. "
        "Default: the model's own, which is every step unless the operator chose another.",
        [0.28, 5.42],
    ),
    "cache": FieldDoc(
        "What steps reuse of earlier ones: `off`, or `deepcache`, which computes the whole network "
        "at every third step and its outermost layers at the others (Ma et al. 2023). Faster, and "
        "another image. Default: the model's own, which is `off` unless the operator chose "
        "another.",
        "deepcache",
    ),
    "prompt": _PROMPT,
    "negativePrompt": _NEGATIVE_PROMPT,
    "negative_prompt": _NEGATIVE_PROMPT,
    "seed": FieldDoc(
        "Seed of the noise of the first image; image i has the seed after it, i times. The same "
        "request and seed give the same bytes. Default: random, and reported with the images.",
        7,
    ),
    "steps": _STEPS,
    "num_inference_steps": _STEPS,
    "guidanceScale": _GUIDANCE,
    "guidance_scale": _GUIDANCE,
    "temperature": FieldDoc(
        "How freely the prompt is followed, without a unit; 0 is the most literal. The guidance "
        "scale becomes 9.3 - 3 x temperature. Ignored if a guidance scale is given, or the model "
        "is made for one.",
        0.8,
    ),
    "aspectRatio": FieldDoc(
        "Width to height, as a size near the area that the model was trained on. `Auto` is square. "
        "Ignored if a size in pixels is given.",
        "3:2",
    ),
    "resolution": FieldDoc(
        "`high` is the size that the model was trained on; `standard` has three quarters of its "
        "sides, for about half of the time. Ignored if a size in pixels is given.",
        "standard",
    ),
    "sampler": FieldDoc(
        "The solver of the denoising steps, with the spacing of noise levels as a suffix. Default: "
        "the model's own, which is `euler` unless its folder says otherwise.",
        "dpmpp_2m_karras",
    ),
    "refine": FieldDoc(
        "Whether the refiner makes the last steps; false leaves them to the base model. Default: "
        "true where a refiner fits the model.",
        True,
    ),
    "handoff": FieldDoc(
        "The share of the noise schedule that base makes before the refiner continues, as "
        "diffusers' `denoising_end`. At 1 base makes the whole image, and at 0 the refiner does. "
        "Without effect where no refiner takes over.",
        0.8,
    ),
    "strength": FieldDoc(
        "How much of a base image is made anew, as a share of the noise schedule: near 0 the image "
        "stays, at 1 it only sets the size.",
        0.6,
    ),
    "resizeMode": FieldDoc(
        "What becomes of a base image whose ratio is not that of its new size: `crop` fills the "
        "size and cuts the rest away, which the warnings tell; `pad` fits the image in and "
        "continues its edges; `stretch` scales each side by itself.",
        "pad",
    ),
    "model": FieldDoc("Name of a base model, as GET /health lists them. Default: the first."),
    "loras": FieldDoc("LoRAs that change the model's style, each with its weight.", []),
    "name": FieldDoc("Name of a LoRA of MODELS_FILE, as GET /health lists them."),
    "weight": FieldDoc(
        "How strongly the LoRA acts, without a unit; below 0 it acts in reverse, and 0 switches it "
        "off. Default: the operator's weight of this LoRA, else 1.",
        0.8,
    ),
    "timeoutSeconds": FieldDoc(
        "Seconds from acceptance after which unfinished images are given up with a 504. Default: "
        "four times the predicted time of all accepted work, plus a minute, plus two for each "
        "model that may have to load.",
        120,
    ),
    "stream": FieldDoc(
        "Whether the response is a stream of server-sent events: where the images are, previews, "
        "and each image as soon as it is done. `Accept: text/event-stream` asks for the same.",
        False,
    ),
}
_IMAGES = FieldDoc(
    "Base images: PNG, JPEG or WebP as a data URI or in base64, up to 16.8 megapixels each."
)
NATIVE: Mapping[str, FieldDoc] = {
    **SHARED,
    "width": FieldDoc("Width of the images in pixels; needs `height`. Default: by `aspectRatio`."),
    "height": FieldDoc("Height of the images in pixels; needs `width`. Default: by `aspectRatio`."),
    "imageCount": FieldDoc(
        "Number of images. Default: DEFAULT_IMAGE_COUNT of the service; 1 with Accept: image/png.",
        1,
    ),
    "baseImages": _IMAGES,
    "images": FieldDoc(f"Another name of `baseImages`. {_IMAGES.meaning}"),
    "refinePrompt": FieldDoc(
        "What to change. It is added to the prompt that made a base image, if this service made "
        "it; for any other image it stands alone.",
        "a large red heart on a white background",
    ),
    "webhook": FieldDoc(
        "Where to send that the job has ended: exactly one of the operator's WEBHOOK_URLS. "
        "Default: nowhere."
    ),
    "config": FieldDoc(
        "The same settings in a nested object, for clients that send them so. Default: absent.",
        {"steps": 20},
    ),
    "modelPath": FieldDoc(
        "Name of a base model, or of the refiner to leave base out; or exactly its configured "
        "folder, the last part of that, or its name on the hub. Never opened as a path. "
        "Default: `model`."
    ),
    "accept": FieldDoc("Whether the terms are accepted; only true is an answer.", True),
    "termsDigest": FieldDoc("Digest of the terms that are accepted, from GET /licenses."),
}
OPENAI: Mapping[str, FieldDoc] = {
    **SHARED,
    "model": FieldDoc(
        "Name of a base model, as GET /v1/models lists them; OpenAI's names, such as gpt-image-1, "
        "mean the default model. Default: that one."
    ),
    "n": FieldDoc("Number of images. Default: 1.", 1),
    "size": FieldDoc(
        "Width and height in pixels, as WIDTHxHEIGHT, or `auto`. Fitted to what the model makes, "
        "with a warning. Default: square; for edits, the size of the image.",
        "1024x1024",
    ),
    "quality": FieldDoc(
        "Chooses the number of steps: 15 for `low`, 50 for `high` and above, the model's own for "
        "the rest. Ignored for distilled models. Default: `auto`.",
        "low",
    ),
    "output_format": FieldDoc("File format of the images. Default: `png`.", "webp"),
    "output_compression": FieldDoc(
        "Quality of JPEG and WebP in percent; without effect on PNG. Default: 90.", 80
    ),
    "response_format": FieldDoc(
        "Images come in the response as base64, or with `url` as links that need no key and work "
        "for ten minutes. Default: `b64_json`; `url` for dall-e-2 and dall-e-3, as OpenAI has it.",
        "b64_json",
    ),
    "background": FieldDoc(
        "Images are opaque; `transparent` gives a warning. Default: `auto`.", "opaque"
    ),
    "stream": FieldDoc(
        "Whether the response is a stream of OpenAI's events: partial images, and each image as "
        "soon as it is done. Default: `false`.",
        False,
    ),
    "partial_images": FieldDoc(
        "With `stream`, previews of each image on its way, evenly over its steps. Default: 0.", 0
    ),
}


def service_examples(info: ServiceInfo) -> dict[str, Any]:
    """Return the examples that depend on the checkpoints of a service, by field."""
    model = info.default_model
    width, height = model.sizes.for_aspect("3:2")
    examples: dict[str, Any] = {
        "model": model.name,
        "sd_model_checkpoint": model.name,
        "modelPath": model.name,
        "width": width,
        "height": height,
        "termsDigest": info.terms_digest,
        "terms": info.terms_digest,
    }
    for lora in info.extensions_of(LORA)[:1]:
        examples |= {"name": lora.name, "loras": [{"name": lora.name, "weight": 0.8}]}
    return examples
