"""`download`: real weights in a folder, verified, with their licence accepted and .env.local set.

The terminal's side only: what is needed, fetched and written is decided in `hub`. Knows no Ray and
no torch.
"""

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
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

from serve_app.config.checkpoints import DOWNLOAD_COMMAND, ENV_VAR, inspect
from serve_app.config.settings import Settings
from serve_app.core.diffusion.spec import Stage
from serve_app.core.errors import AuraError, DownloadError
from serve_app.core.service.info import License
from serve_app.hub import acceptance, env_file
from serve_app.hub import local_files as local
from serve_app.hub.acceptance import Acceptance
from serve_app.hub.client import fetch, hub_address, look_up, read_index
from serve_app.hub.selection import (
    HubRepo,
    RepoFile,
    RepoRequest,
    Repository,
    half_wanted,
    repos_for,
    select_files,
    size_of,
    stage_of,
)
from serve_app.runtime.checkpoints.licenses import license_on_card

ENV_FILE, ENV_EXAMPLE = Path(".env.local"), Path(".env.example")
Ask = Callable[[str], str]  # a question to the answer
console = Console(stderr=True, highlight=False)


@dataclass(frozen=True, slots=True)
class DownloadOptions:
    """What the command line asks for."""

    what: str = "all"
    folder: Path = Path("models")
    revision: str | None = None
    accept_license: bool = False

    @property
    def again(self) -> str:
        """The command that asks for this."""
        parts = ["aura", "download", self.what]
        if self.folder != Path("models"):
            parts += ["--folder", str(self.folder)]
        if self.revision:
            parts += ["--revision", self.revision]
        return shlex.join(parts + ["--accept-license"] * self.accept_license)


@dataclass(frozen=True, slots=True)
class Plan:
    """One checkpoint to be there whole."""

    repository: Repository
    folder: Path
    value: str  # the folder as .env.local has it
    stage: Stage
    entries: tuple[RepoFile, ...]
    license: License


def download(
    wish: DownloadOptions,
    *,
    ask: Ask | None = None,
    address: str | None = None,
    free: int | None = None,
) -> int:
    """The checkpoints are there, whole, and told to the service; the exit status.

    `ask` puts a question to a person: the terminal's own where there is one. `address` of the hub
    and `free` bytes of the disk are found out unless they are given.
    """
    try:
        _download(wish, ask or _terminal(), address or hub_address(), free)
    except KeyboardInterrupt:
        console.print(f"\nstopped. What came is kept; go on with: {wish.again}", soft_wrap=True)
        return 130
    except (AuraError, OSError) as error:
        console.print(f"[bold red]error[/] {escape(str(error))}", soft_wrap=True)
        return 2
    return 0


def _download(wish: DownloadOptions, ask: Ask | None, address: str, free: int | None) -> None:
    settings = Settings.read()
    half = half_wanted(settings.model_precision, settings.model_device)
    plans = [_plan(source, wish, address, half=half) for source in repos_for(wish.what)]
    _accept(plans, wish, ask)
    with ExitStack() as stack:
        for plan in plans:
            stack.enter_context(local.alone(plan.folder, wish.again))
        _fetch(plans, wish, free, half=half)
    for plan in plans:
        local.tidy(plan.folder)
        inspect(plan.folder.absolute(), plan.stage)
    env_file.write(ENV_FILE, ENV_EXAMPLE, {ENV_VAR[p.stage]: p.value for p in plans})
    _tell_what_is_next(plans)


def _plan(source: HubRepo, wish: DownloadOptions, address: str, *, half: bool) -> Plan:
    folder = wish.folder / source.folder
    value = env_file.as_value(folder)
    before = acceptance.recorded(folder)
    if before and before.repository != source.name:
        raise DownloadError(
            f"{folder} holds {before.repository}, not {source.name}: choose another place with "
            "--folder"
        )
    revision = wish.revision or (before.revision if before else "main")
    repository = look_up(RepoRequest(source.name, revision, address, wish.again))
    index = read_index(repository)
    stage = stage_of(index, repository.asked)
    terms = license_on_card(source.name, repository.license, repository.license_url)
    entries = select_files(repository, index, stage, half=False)
    if len(local.sized(entries, folder)) < len(entries):  # full files are loaded where they lie
        entries = select_files(repository, index, stage, half=half)
    console.print(
        f"[bold]{escape(source.name)}[/] at {repository.commit[:12]}, the {stage}, "
        f"{decimal(size_of(entries))} to {escape(value)}",
        soft_wrap=True,
    )
    return Plan(repository, folder, value, stage, entries, terms)


def _accept(plans: list[Plan], wish: DownloadOptions, ask: Ask | None) -> None:
    """Every licence is accepted, and that stands beside the weights, with the commit."""
    befores = {plan.folder: acceptance.recorded(plan.folder) for plan in plans}
    asking = [
        plan
        for plan in plans
        if not ((before := befores[plan.folder]) and before.covers(plan.license))
    ]
    if asking:
        _show([plan.license for plan in asking])
        if not wish.accept_license:
            _ask_for([plan.license for plan in asking], wish, ask)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    for plan in plans:
        before = befores[plan.folder]
        acceptance.record(
            plan.folder,
            Acceptance(
                repository=plan.repository.asked.name,
                revision=plan.repository.commit,
                license=plan.license.name,
                license_url=plan.license.url,
                accepted_at=now if plan in asking or not before else before.accepted_at,
            ),
        )


def _show(licenses: list[License]) -> None:
    for one in licenses:
        console.print(f"licence of {escape(one.model)}: [bold]{escape(one.name)}[/]")
        console.print(f"  {escape(one.url)}", soft_wrap=True)
    restrictions = next((one.restrictions for one in licenses if one.restrictions), ())
    if restrictions:
        console.print("In short it forbids (its own text binds):")
        for restriction in restrictions:
            console.print(f"  - {restriction}", soft_wrap=True)


def _ask_for(licenses: list[License], wish: DownloadOptions, ask: Ask | None) -> None:
    urls = " and ".join(one.url for one in licenses)
    if ask is None:
        raise DownloadError(
            "the licence must be accepted, and there is no terminal to ask on: read it at "
            f"{urls}, then: {wish.again} --accept-license"
        )
    if ask("Do you accept? [y/N] ").strip().lower() not in ("y", "yes"):
        raise DownloadError(
            f"the licence was not accepted, so nothing was fetched. Read it at {urls}, then: "
            f"{wish.again}"
        )


def _fetch(plans: list[Plan], wish: DownloadOptions, free: int | None, *, half: bool) -> None:
    there = sum(size_of(local.sized(plan.entries, plan.folder)) for plan in plans)
    with _bar("verifying what is there", there) as (_, tell):
        lacking = [(plan, local.missing(plan.entries, plan.folder, tell)) for plan in plans]
    whole = sum(size_of(entries) for _, entries in lacking)
    begun = sum(local.begun(entries, plan.folder) for plan, entries in lacking)
    room = local.free_bytes(wish.folder) if free is None else free
    local.check_free_space(whole - begun, room, wish.folder, wish.again)
    if not whole:
        return
    count = sum(len(entries) for _, entries in lacking)
    form = "as fp16 where the repository has it" if half else "in full precision"
    console.print(f"{count} files to fetch, {decimal(whole - begun)}, {form}", soft_wrap=True)
    with _bar("", whole, begun) as (show, tell):
        for plan, entries in lacking:
            for entry in entries:
                show(f"{plan.folder.name}/{entry.path}")
                fetch(plan.repository, entry, plan.folder, tell)


@contextmanager
def _bar(
    title: str, total: int, done: int = 0
) -> Iterator[tuple[Callable[[str], None], Callable[[int], None]]]:
    """A progress bar of bytes: what changes its title, what adds to it. Unseen for no bytes."""
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


def _tell_what_is_next(plans: list[Plan]) -> None:
    for plan in plans:
        console.print(
            f"{ENV_VAR[plan.stage]}={escape(plan.value)} stands in {ENV_FILE}", soft_wrap=True
        )
    settings = Settings.read()
    in_force = {
        Stage.BASE: settings.model_checkpoint_dir,
        Stage.REFINER: settings.model_refiner_checkpoint_dir,
    }
    for plan in plans:
        if in_force[plan.stage] != plan.folder.absolute():
            console.print(
                f"[yellow]but the environment says {ENV_VAR[plan.stage]}="
                f"{escape(str(in_force[plan.stage]))}, and wins: unset {ENV_VAR[plan.stage]}[/]",
                soft_wrap=True,
            )
    if in_force[Stage.BASE] is None:
        console.print(
            f"a refiner needs a base. Next: {DOWNLOAD_COMMAND[Stage.BASE]}", soft_wrap=True
        )
    else:
        console.print("Next: make serve, or aura up", soft_wrap=True)


def _terminal() -> Ask | None:
    """The person at the terminal, None without one."""

    def ask(question: str) -> str:
        try:
            return console.input(escape(question))
        except EOFError:
            return ""

    return ask if sys.stdin.isatty() else None
