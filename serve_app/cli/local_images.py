"""The images of a job, generated in this process: what `aura generate` does once it has planned."""

import os
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from serve_app.cli.console import console, print_warning
from serve_app.config.catalog import ModelCatalog, choose_device, max_batch_images, precision_of
from serve_app.config.settings import Settings
from serve_app.core.diffusion.spec import Stage
from serve_app.ingress.generation_job import GenerationJob
from serve_app.process import allocator
from serve_app.runtime.local import LocalPipeline
from serve_app.runtime.memory.device import Device, open_device
from serve_app.runtime.networks.safety_checker import ImageSafetyChecker
from serve_app.runtime.png import encode_png
from serve_app.runtime.proof_file import ProofFile


def write_images(
    job: GenerationJob, catalog: ModelCatalog, settings: Settings, output: Path
) -> list[Path]:
    """Generate the images of a job, write them with their metadata, and return their files."""
    allocator.keep_large_blocks()
    device = configured_device(settings)
    with console.status("loading the models"):
        pipeline = _load_pipeline(job, catalog, settings, device)
    return _write(job, pipeline, output)


def _load_pipeline(
    job: GenerationJob, catalog: ModelCatalog, settings: Settings, device: Device
) -> LocalPipeline:
    """Load the models and extensions that a job needs."""
    bases = {model.checkpoint.name: model.checkpoint for model in catalog.models}
    base, refiner = bases[job.models[Stage.BASE]], catalog.refiner
    used = {ref.key for image in job.images for ref in image.spec.extensions}
    limit = max_batch_images(settings, device.torch_device.type)
    checker = settings.safety_checker_dir
    return LocalPipeline(
        (base, refiner) if refiner and job.refined else (base,),
        device,
        images=min(len(job.images), limit),
        strict=settings.model_determinism == "strict",
        safety=ImageSafetyChecker(checker, device) if checker else None,
        extensions={
            extension.info.key: extension.file
            for extension in catalog.extensions
            if extension.info.key in used
        },
        proofs=ProofFile.default(),
    )


def _write(job: GenerationJob, pipeline: LocalPipeline, output: Path) -> list[Path]:
    """Generate the images of a job and write them with their metadata."""
    specs = [image.spec for image in job.images]
    columns = (
        TextColumn("generating"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=sum(spec.nfe for spec in specs))
        pixels = pipeline.generate(
            specs,
            on_progress=lambda steps: progress.update(task, completed=steps),
            on_warning=print_warning,
        )
    paths = []
    for number, (image, rgb) in enumerate(zip(job.images, pixels, strict=True), 1):
        path = output.with_stem(f"{output.stem}-{number}") if len(pixels) > 1 else output
        profiles = {str(stage): name for stage, name in pipeline.profiles(image.spec).items()}
        path.write_bytes(job.with_metadata(image, encode_png(rgb), profiles))
        paths.append(path)
    return paths


def configured_device(settings: Settings) -> Device:
    """Open the device of MODEL_DEVICE; on a CPU by default with all cores.

    The default number of threads is the largest power of two, because the number decides bits.
    """
    name = settings.model_device
    if name.startswith("cuda:"):
        os.environ["CUDA_VISIBLE_DEVICES"] = name.removeprefix("cuda:")
        name = "cuda"
    device = choose_device(name, gpus=torch.cuda.device_count())
    return open_device(
        device,
        precision=precision_of(settings, device),
        xformers=settings.enable_xformers,
        compile_mode=settings.model_compile,
        quantization=settings.model_quantization,
        cpu_threads=settings.model_cpu_threads or 1 << ((os.cpu_count() or 1).bit_length() - 1),
    )
