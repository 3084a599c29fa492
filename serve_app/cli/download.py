"""`aura download`: put real weights into a folder, verified, and point .env.local at them.

The terminal's side only: `hub` decides what is needed, downloads and writes. No Ray, no torch.
"""

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.filesize import decimal
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from serve_app.cli.console import INTERRUPTED, OK, REFUSED, console, print_error
from serve_app.config.checkpoints import DOWNLOAD_COMMAND, ENV_VAR, inspect
from serve_app.config.settings import Settings
from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import AuraError, DownloadError
from serve_app.core.service.info import License
from serve_app.hub import env_file, local_files
from serve_app.hub.client import fetch_file, get_repository, hub_endpoint, read_index
from serve_app.hub.selection import (
    HubRepo,
    RepoFile,
    RepoRequest,
    Repository,
    prefers_half,
    repos_for,
    select_files,
    stage_of,
    total_size,
)
from serve_app.runtime.checkpoints import acceptance
from serve_app.runtime.checkpoints.acceptance import Acceptance
from serve_app.runtime.checkpoints.licenses import license_on_card

ENV_FILE, ENV_EXAMPLE = Path(".env.local"), Path(".env.example")
Ask = Callable[[str], str]  # returns the answer to a question


@dataclass(frozen=True, slots=True)
class DownloadOptions:
    """The options of the command line."""

    what: str = "all"
    folder: Path = Path("models")
    revision: str | None = None
    accept_license: bool = False

    @property
    def command(self) -> str:
        """The command line with these options."""
        parts = ["aura", "download", self.what]
        if self.folder != Path("models"):
            parts += ["--folder", str(self.folder)]
        if self.revision:
            parts += ["--revision", self.revision]
        return shlex.join(parts + ["--accept-license"] * self.accept_license)


@dataclass(frozen=True, slots=True)
class PlannedDownload:
    """One checkpoint, and where it goes."""

    repository: Repository
    folder: Path
    value: str  # the folder as .env.local has it
    stage: Stage
    files: tuple[RepoFile, ...]
    license: License


def download(
    options: DownloadOptions,
    *,
    ask: Ask | None = None,
    endpoint: str | None = None,
    free: int | None = None,
) -> int:
    """Download checkpoints, point .env.local at them, and return the exit status.

    `ask` puts a question to a person; by default the terminal, if there is one. The `endpoint` of
    the hub and the `free` bytes of the disk are determined unless they are given.
    """
    try:
        _download(options, ask or _terminal(), endpoint or hub_endpoint(), free)
    except KeyboardInterrupt:
        console.print(
            f"\nstopped. What arrived is kept; resume with: {escape(options.command)}",
            soft_wrap=True,
        )
        return INTERRUPTED
    except (AuraError, OSError) as error:
        print_error(error)
        return REFUSED
    return OK


def _download(options: DownloadOptions, ask: Ask | None, endpoint: str, free: int | None) -> None:
    settings = Settings.read()
    precision = None if settings.model_precision == "auto" else settings.model_precision
    half = prefers_half(precision, settings.model_device)
    plans = [_plan(repo, options, endpoint, half=half) for repo in repos_for(options.what)]
    _accept_licenses(plans, options, ask)
    with ExitStack() as stack:
        for plan in plans:
            stack.enter_context(local_files.download_lock(plan.folder, options.command))
        _fetch(plans, options, free, half=half)
    for plan in plans:
        local_files.remove_parts(plan.folder)
        inspect(plan.folder.absolute(), plan.stage)
    env_file.write(ENV_FILE, ENV_EXAMPLE, {ENV_VAR[plan.stage]: plan.value for plan in plans})
    _print_next_steps(plans)


def _plan(repo: HubRepo, options: DownloadOptions, endpoint: str, *, half: bool) -> PlannedDownload:
    """Look a repository up, and choose its folder and files."""
    folder = options.folder / repo.folder
    value = env_file.path_value(folder)
    previous = acceptance.read(folder)
    if previous and previous.repository != repo.name:
        raise DownloadError(
            f"holds {previous.repository}, not {repo.name}",
            subject=str(folder),
            remedy="Choose another folder with --folder",
        )
    revision = options.revision or (previous.revision if previous else "main")
    repository = get_repository(RepoRequest(repo.name, revision, endpoint, options.command))
    index = read_index(repository)
    stage = stage_of(index, repository.request)
    terms = license_on_card(repo.name, repository.license, repository.license_url)
    files = select_files(repository, index, stage, half=False)
    if len(local_files.with_right_size(files, folder)) < len(files):
        files = select_files(repository, index, stage, half=half)
    # else: files in full precision that are already on disk serve at every precision
    console.print(
        f"[bold]{escape(repo.name)}[/] at {repository.commit[:12]}, the {stage}, "
        f"{decimal(total_size(files))} to {escape(value)}",
        soft_wrap=True,
    )
    return PlannedDownload(repository, folder, value, stage, files, terms)


def _accept_licenses(
    plans: list[PlannedDownload], options: DownloadOptions, ask: Ask | None
) -> None:
    """Get every licence accepted, and record that beside the weights, with the commit.

    Raises `DownloadError` if one is not accepted.
    """
    previous = {plan.folder: acceptance.read(plan.folder) for plan in plans}
    new = []
    for plan in plans:
        record = previous[plan.folder]
        if record is None or not record.covers(plan.license):
            new.append(plan)
    if new:
        _print_licenses([plan.license for plan in new])
        if not options.accept_license:
            _ask_for([plan.license for plan in new], options, ask)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    for plan in plans:
        record = previous[plan.folder]
        acceptance.write(
            plan.folder,
            Acceptance(
                repository=plan.repository.request.name,
                revision=plan.repository.commit,
                license=plan.license.name,
                license_url=plan.license.url,
                accepted_at=now if plan in new or not record else record.accepted_at,
            ),
        )


def _print_licenses(licenses: list[License]) -> None:
    for license in licenses:
        console.print(f"licence of {escape(license.model)}: [bold]{escape(license.name)}[/]")
        console.print(f"  {escape(license.url)}", soft_wrap=True)
    restrictions = next((each.restrictions for each in licenses if each.restrictions), ())
    if restrictions:
        console.print("In short, it forbids (only its own text is binding):")
        for restriction in restrictions:
            console.print(f"  - {restriction}", soft_wrap=True)


def _ask_for(licenses: list[License], options: DownloadOptions, ask: Ask | None) -> None:
    """Ask a person to accept the licences. Raises `DownloadError` if nobody does."""
    urls = " and ".join(license.url for license in licenses)
    if ask is None:
        raise DownloadError(
            "the licence must be accepted, and there is no terminal to ask on",
            remedy=f"Read it at {urls}, then run: {options.command} --accept-license",
        )
    if ask("Do you accept? [y/N] ").strip().lower() not in ("y", "yes"):
        raise DownloadError(
            "the licence was not accepted, so nothing was downloaded",
            remedy=f"Read it at {urls}, then run: {options.command}",
        )


def _fetch(
    plans: list[PlannedDownload], options: DownloadOptions, free: int | None, *, half: bool
) -> None:
    """Verify what is on disk, and download what is missing."""
    present = sum(
        total_size(local_files.with_right_size(plan.files, plan.folder)) for plan in plans
    )
    with _bar("verifying files on disk", present) as (_, advance):
        missing = [(plan, local_files.missing(plan.files, plan.folder, advance)) for plan in plans]
    total = sum(total_size(files) for _, files in missing)
    resumed = sum(local_files.resumable_bytes(files, plan.folder) for plan, files in missing)
    available = local_files.free_bytes(options.folder) if free is None else free
    local_files.check_free_space(total - resumed, available, options.folder, options.command)
    if not total:
        return
    count = sum(len(files) for _, files in missing)
    variant = "in fp16 where the repository has it" if half else "in full precision"
    console.print(
        f"{count} files to download, {decimal(total - resumed)}, {variant}", soft_wrap=True
    )
    with _bar("", total, resumed) as (set_title, advance):
        for plan, files in missing:
            for file in files:
                set_title(f"{plan.folder.name}/{file.path}")
                fetch_file(plan.repository, file, plan.folder, advance)


@contextmanager
def _bar(
    title: str, total: int, done: int = 0
) -> Iterator[tuple[Callable[[str], None], Callable[[int], None]]]:
    """Show a progress bar of bytes; yield what sets its title and what advances it.

    Nothing is shown for a total of 0.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not total) as progress:
        task = progress.add_task(escape(title), total=total, completed=done)
        yield (
            lambda name: progress.update(task, description=escape(name)),
            lambda count: progress.update(task, advance=count),
        )


def _print_next_steps(plans: list[PlannedDownload]) -> None:
    for plan in plans:
        console.print(
            f"{ENV_FILE} has {ENV_VAR[plan.stage]}={escape(plan.value)} now", soft_wrap=True
        )
    settings = Settings.read()
    in_force = {
        Stage.BASE: settings.model_checkpoint_dir,
        Stage.REFINER: settings.model_refiner_checkpoint_dir,
    }
    for plan in plans:
        variable = ENV_VAR[plan.stage]
        if in_force[plan.stage] != plan.folder.absolute():
            console.print(
                f"[yellow]but {variable}={escape(str(in_force[plan.stage]))} in the environment "
                f"takes precedence: unset {variable}[/]",
                soft_wrap=True,
            )
    if in_force[Stage.BASE] is None:
        console.print(
            f"A refiner needs a base. Next: {DOWNLOAD_COMMAND[Stage.BASE]}", soft_wrap=True
        )
    else:
        console.print("Next: make serve, or aura up", soft_wrap=True)


def _terminal() -> Ask | None:
    """Return what asks the person at the terminal, None without one."""

    def ask(question: str) -> str:
        try:
            return console.input(escape(question))
        except EOFError:
            return ""

    return ask if sys.stdin.isatty() else None
