"""What the fields of the A1111 routes mean, in the words of the API's description."""

from collections.abc import Mapping

from serve_app.ingress.field_docs import SHARED, FieldDoc

FIELD_DOCS: Mapping[str, FieldDoc] = {
    "prompt": SHARED["prompt"],
    "negative_prompt": SHARED["negative_prompt"],
    "seed": FieldDoc(
        "Seed of the noise of the first image; image i has the seed after it, i times. Below 0: "
        "random, and reported in `info`. Default: random.",
        7,
    ),
    "sampler_name": FieldDoc(
        "The solver of the denoising steps: a name of the web UI, with or without a schedule type "
        "behind it, or one of this service. Default: the model's own.",
        "DPM++ 2M",
    ),
    "sampler_index": FieldDoc("The old name of `sampler_name`. Default: absent.", "Euler"),
    "scheduler": FieldDoc(
        "How the noise levels of the steps are spaced. Automatic is the checkpoint's own spacing. "
        "Default: that one.",
        "Karras",
    ),
    "batch_size": FieldDoc("Images, times `n_iter`. Default: 1.", 1),
    "n_iter": FieldDoc("Images, times `batch_size`. Default: 1.", 1),
    "steps": SHARED["steps"],
    "cfg_scale": SHARED["guidance_scale"],
    "width": FieldDoc(
        "Width in pixels, fitted to what the model makes. Default: the model's own size; of "
        "img2img, the image's.",
        128,
    ),
    "height": FieldDoc("Height in pixels, as `width`. Default: as of `width`.", 128),
    "refiner_checkpoint": FieldDoc(
        "The refiner's name, or None to leave it out. Default: it is used where one fits the "
        "model.",
        "None",
    ),
    "refiner_switch_at": FieldDoc(f"{SHARED['handoff'].meaning} Default: 0.8.", 0.8),
    "override_settings": FieldDoc(
        "Options for this request alone, of which `sd_model_checkpoint` chooses the model. "
        "Default: none.",
        {},
    ),
    "send_images": FieldDoc("Whether the response has the images. Default: true.", True),
    "init_images": FieldDoc(
        "Base images: PNG, JPEG or WebP in base64 or as data URIs, up to 16.8 megapixels each; "
        "the images made go round them."
    ),
    "denoising_strength": FieldDoc(
        "How much of a base image is made anew, as a share of the noise schedule. Default: 0.75.",
        0.6,
    ),
    "resize_mode": FieldDoc(
        "What becomes of a base image of another ratio: 0 stretches it, 1 crops, 2 pads. "
        "Default: 0.",
        1,
    ),
    "image": FieldDoc("A PNG in base64 or as a data URI."),
    "sd_model_checkpoint": FieldDoc(
        "Name of the model of the caller's requests from now on, as `sd-models` lists them. "
        "Default: the one of before."
    ),
}
