"""Build the image by the Dockerfile without a Docker engine or a registry, and try it.

Needs root, buildah, debootstrap and util-linux (Debian packages). A clean Debian made by
debootstrap stands in for the base image: the same release and minor version of Python, but
Debian's own build of it. pip in the build follows this machine's settings, so that mirrors and
local wheels serve; PyTorch comes from there too, or from TORCH_INDEX. Run it with
`make image-check`.
"""

import ast
import base64
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RELEASE, MIRROR = "bookworm", "http://deb.debian.org/debian"
BASE, IMAGE = f"localhost/aura-serve-base:{RELEASE}", "localhost/aura-serve:check"
PACKAGES = "python3,python3-venv,ca-certificates"
PROGRAMS = ("buildah", "debootstrap", "unshare", "nsenter")
SECRETS = (  # files that must not enter the image
    *(".env.local", ".env", "models/secret.safetensors", ".venv/secret", ".git/secret"),
    *("serve_app/.env.local", "configs/.env.local", "secret"),
)
KEY = "a-key-of-the-image-check"
_PYPI = "https://pypi.org/simple"
_PIP_SETTINGS = ("index-url", "extra-index-url", "find-links", "cert", "proxy", "trusted-host")
START_SECONDS, STOP_SECONDS = 300, 120


def main() -> int:
    """Build, list the layers, start as non-root, make a picture with a key, stop by SIGTERM."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if os.geteuid() != 0 or missing:
        needs = ", ".join([*missing, *(["root"] if os.geteuid() else [])])
        print(f"the image can't be checked on this machine, which lacks: {needs}", file=sys.stderr)
        return 2
    _make_base()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        _build(_context(Path(folder) / "context"), Path(folder) / "pip.conf")
        _print_layers(Path(folder) / "image")
    config = json.loads(_output("buildah", "inspect", "--type", "image", IMAGE))["Docker"]["config"]
    container = _output("buildah", "from", IMAGE)
    try:
        mount = Path(_output("buildah", "mount", container))
        _check_files(mount)
        with _started(mount, config) as process:
            _check_service(process, config)
    finally:
        _output("buildah", "rm", container)
    print("the image is fine")
    return 0


def _make_base() -> None:
    """Make the image that stands in for the base, unless it is there from the last time."""
    if subprocess.run(["buildah", "inspect", BASE], capture_output=True).returncode == 0:
        return
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        debootstrap = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", RELEASE]
        subprocess.run([*debootstrap, folder, MIRROR], check=True, stdout=subprocess.DEVNULL)
        for mounted in ("proc", "sys"):
            subprocess.run(["umount", f"{folder}/{mounted}"], stderr=subprocess.DEVNULL)
        container = _output("buildah", "from", "scratch")
        _output("buildah", "add", container, folder, "/")
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    _output("buildah", "config", "--env", f"PATH={path}", container)
    _output("buildah", "commit", "--rm", container, BASE)


def _context(folder: Path) -> Path:
    """Return a copy of the repository with files beside it that must not enter the image."""
    for name in _output("git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard").split(
        "\n"
    ):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    for name in SECRETS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("API_KEYS=secret\n")
    return folder


def _build(context: Path, pip_config: Path) -> None:
    settings = _pip_settings()
    lines = [f"{name} = {value}" for name, value in settings.items()]
    pip_config.write_text("\n".join(["[global]", *lines, ""]))
    words = " ".join(settings.values()).replace("file://", "").split()
    found = [Path(word) for word in words if word.startswith("/") and Path(word).exists()]
    paths = {path.parent if path.name == "simple" else path for path in found}  # files are beside
    volumes = [f"--volume={path}:{path}:ro" for path in sorted(paths)]
    began = time.monotonic()
    subprocess.run(
        [
            *("buildah", "build", "--isolation=chroot", "--format=docker", "--layers", "--quiet"),
            *(f"--volume={pip_config}:/etc/pip.conf:ro", *volumes),
            *("--build-arg", f"PYTHON_IMAGE={BASE}"),
            *("--build-arg", f"TORCH_INDEX={os.environ.get('TORCH_INDEX', _PYPI)}"),
            *("--tag", IMAGE, str(context)),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    print(f"built in {time.monotonic() - began:.0f} s")


def _pip_settings() -> dict[str, str]:
    """Return this machine's settings of pip that say where packages come from."""
    settings = {}
    for line in _output(sys.executable, "-m", "pip", "config", "list").splitlines():
        key, _, value = line.partition("=")
        name = key.rpartition(".")[2]
        if name in _PIP_SETTINGS:
            settings[name] = " ".join(ast.literal_eval(value).split())
    return settings


def _print_layers(folder: Path) -> None:
    """Print each layer's size, compressed as it travels, and the step that made it."""
    _output("buildah", "push", "--quiet", IMAGE, f"dir:{folder}")
    manifest = json.loads((folder / "manifest.json").read_text())
    config = json.loads((folder / manifest["config"]["digest"].removeprefix("sha256:")).read_text())
    steps = [step["created_by"] for step in config["history"] if not step.get("empty_layer")]
    for layer, step in zip(manifest["layers"], steps, strict=True):
        text = re.sub(r"(dir|file|multi):[0-9a-f]{64}", "...", step).removeprefix("/bin/sh -c ")
        print(
            f"{layer['size'] / 1e6:8.1f} MB  {' '.join(text.removeprefix('#(nop)').split())[:84]}"
        )
    print(f"{sum(layer['size'] for layer in manifest['layers']) / 1e6:8.1f} MB  in all")


def _check_files(mount: Path) -> None:
    """Check that nothing of the context entered but what the Dockerfile copies."""
    for folder in ("home", "opt", "build", "srv", "var/lib/aura"):
        for file in (mount / folder).rglob("*"):
            names = {"secret", "secret.safetensors", ".env.local", ".env"}
            _expect(file.name not in names, f"{file} is in the image")


@contextmanager
def _started(mount: Path, config: dict[str, Any]) -> Iterator[int]:
    """Run the image's command as process 1 of namespaces of its own; yield its process id here."""
    inside = [sys.executable, __file__, "--inside", str(mount), json.dumps(config)]
    unshare = ["unshare", "--mount", "--pid", "--net", "--fork", "--kill-child"]
    with subprocess.Popen([*unshare, *inside], start_new_session=True) as runner:
        try:
            children = Path(f"/proc/{runner.pid}/task/{runner.pid}/children")
            while not (listed := children.read_text().split()):
                time.sleep(0.05)
            yield int(listed[0])
            began = time.monotonic()
            os.kill(int(listed[0]), signal.SIGTERM)
            code = runner.wait(STOP_SECONDS)
            print(f"exit code {code}, {time.monotonic() - began:.1f} s after SIGTERM")
            _expect(code == 0, "SIGTERM did not end it cleanly")
        finally:
            if runner.poll() is None:
                runner.kill()


def run_inside(mount: Path, config: dict[str, Any]) -> None:
    """Enter the image, as its user, and become its command. Already in namespaces of its own."""
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "--rbind", "/dev", str(mount / "dev")], check=True)
    for kind, place, options in (("proc", "proc", "rw"), ("tmpfs", "dev/shm", "size=2g")):
        command = ["mount", "-t", kind, "-o", options, kind, str(mount / place)]
        subprocess.run(command, check=True)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        up_and_running = struct.pack("16sH", b"lo", 0x1 | 0x40)
        fcntl.ioctl(any_socket, 0x8914, up_and_running)  # SIOCSIFFLAGS: the loopback device
    os.chroot(mount)
    os.chdir(config["WorkingDir"])
    os.setgroups([])
    os.setgid(int(config["User"]))
    os.setuid(int(config["User"]))
    command = [*config["Entrypoint"], *config["Cmd"]]
    os.execvpe(command[0], command, _environment(config) | {"API_KEYS": KEY})


def _environment(config: dict[str, Any]) -> dict[str, str]:
    return {"HOME": "/home/aura"} | dict(entry.split("=", 1) for entry in config["Env"])


def _check_service(process: int, config: dict[str, Any]) -> None:
    """Wait for the health check, look at the user, and make a picture with the key."""
    kind, *health = config["Healthcheck"]["Test"]
    _expect(kind == "CMD", f"the health check is of the kind {kind}")
    began = time.monotonic()
    while _inside(process, config, *health).returncode:
        _expect(time.monotonic() - began < START_SECONDS, "the health check fails")
        _expect(Path(f"/proc/{process}").exists(), "the command ended")
        time.sleep(1)
    print(f"healthy after {time.monotonic() - began:.1f} s")
    status = Path(f"/proc/{process}/status").read_text()
    _expect("\nUid:\t1000\t1000" in status, "process 1 is not the user 1000")
    for probe in ("command -v ray wget bash", "aura --version", "pip check"):  # KubeRay's needs too
        done = _inside(process, config, "bash", "-c", probe)
        _expect(done.returncode == 0, f"{probe}: {done.stdout}")
    url, body = "http://127.0.0.1:4000", '{"prompt": "a red heart", "imageCount": 1, "steps": 8}'
    wget = [
        "wget",
        "-q",
        "-O",
        "-",
        "--header=Content-Type: application/json",
        f"--post-data={body}",
    ]
    _expect(_inside(process, config, *wget, f"{url}/generate").returncode != 0, "no key is needed")
    while _inside(process, config, "wget", "-q", "-O", "-", f"{url}/health").returncode:
        _expect(time.monotonic() - began < START_SECONDS, "the models do not load")
        time.sleep(1)
    key = f"--header=Authorization: Bearer {KEY}"
    done = _inside(process, config, *wget, key, f"{url}/generate")
    _expect(done.returncode == 0, f"no picture: {done.stdout}")
    picture = base64.b64decode(json.loads(done.stdout)["images"][0])
    _expect(picture.startswith(b"\x89PNG"), "the picture is no PNG")
    print(f"a picture of {len(picture):,} bytes after {time.monotonic() - began:.1f} s")


def _inside(
    process: int, config: dict[str, Any], *command: str
) -> subprocess.CompletedProcess[str]:
    """Run a command beside process 1, as the same user."""
    user = config["User"]
    nsenter = ["nsenter", f"--target={process}", "--mount", "--pid", "--net", "--root", "--wd"]
    environment = [f"{name}={value}" for name, value in _environment(config).items()]
    return subprocess.run(
        [*nsenter, f"--setuid={user}", f"--setgid={user}", "env", "-i", *environment, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def _expect(holds: bool, problem: str) -> None:
    if not holds:
        raise SystemExit(f"the image is wrong: {problem}")


def start(arguments: Sequence[str]) -> int:
    """Run the check, or the part of it that enters the image."""
    if arguments[:1] == ["--inside"]:
        run_inside(Path(arguments[1]), json.loads(arguments[2]))
    return main()


if __name__ == "__main__":
    sys.exit(start(sys.argv[1:]))
