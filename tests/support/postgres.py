"""A PostgreSQL server for tests: Debian's, started as an unprivileged user in its own folder.

Where it is missing, tests that need it are skipped by name. They fail instead where `AURA_REQUIRE`
lists `postgresql`, as in `.ci/run`.
"""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import psutil
import psycopg
import pytest

from tests.support.ports import free_port
from tests.support.running_up import running
from tests.support.waiting import until

_MISSING = "PostgreSQL's server is not installed (Debian: apt-get install postgresql)"
_OPTIONS = (
    *("-c", "listen_addresses=127.0.0.1"),
    *("-c", "fsync=off"),
    *("-c", "shared_buffers=16MB"),
    *("-c", "max_connections=40"),
)


def postgres_programs() -> Path:
    """Return the folder of the newest server's programs; skip or fail the test without one."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=_version)
    found = versions[-1] if versions else shutil.which("initdb")
    if found:
        return Path(found).parent
    if "postgresql" in os.environ.get("AURA_REQUIRE", "").split(","):
        pytest.fail(_MISSING)
    pytest.skip(_MISSING)


class PostgresServer:
    """A server that tests start, kill, suspend, and start again on the same data."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._folder = Path(tempfile.mkdtemp(prefix="aura-pg-", dir="/tmp"))
        self._user = _unprivileged() if os.geteuid() == 0 else None
        if self._user:
            os.chown(self._folder, self._user.pw_uid, self._user.pw_gid)
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        data = ("-D", str(self._folder / "data"))
        options = ("-A", "trust", "-U", "aura", "-N", "-E", "UTF8", "--locale=C")
        subprocess.run(self._command("initdb", *data, *options), check=True, capture_output=True)
        self.start()

    @property
    def url(self) -> str:
        """The URL of its database; any password is right."""
        return f"postgresql://aura:s3cret@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start the server, and return when it answers."""
        data = ("-D", str(self._folder / "data"), "-k", str(self._folder), "-p", str(self.port))
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command("postgres", *data, *_OPTIONS), stdout=log, stderr=log
            )
        until(self._answers, timeout=30)

    def kill(self) -> None:
        """End the server and all its connections at once, as `kill -9` does.

        Return when all are gone: while a child lives, the server refuses to start on its data.
        """
        processes = self._processes()
        for process in processes:
            process.send_signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()
            self._process = None
        until(lambda: not running(processes))
        (self._folder / "data" / "postmaster.pid").unlink(missing_ok=True)

    def end_connections(self, application: str) -> None:
        """End the connections of programs with this beginning of their name."""
        with psycopg.connect(self.url) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE starts_with(application_name, %s)",
                (application,),
            )

    def suspend(self) -> None:
        """Stop all its processes where they are."""
        for process in self._processes():
            process.suspend()

    def resume(self) -> None:
        """Let them go on."""
        for process in self._processes():
            process.resume()

    def remove(self) -> None:
        """Kill the server and delete its data."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _processes(self) -> list[psutil.Process]:
        if self._process is None:
            return []
        server = psutil.Process(self._process.pid)
        return [server, *server.children(recursive=True)]

    def _answers(self) -> bool:
        ask = [str(self._programs / "pg_isready"), "-q", "-h", str(self._folder)]
        return subprocess.run([*ask, "-p", str(self.port)], check=False).returncode == 0

    def _command(self, program: str, *arguments: str) -> list[str]:
        """Return a command that is run by a user who is not root: the server refuses root."""
        command = [str(self._programs / program), *arguments]
        if self._user is None:
            return command
        ids = ("--reuid", str(self._user.pw_uid), "--regid", str(self._user.pw_gid))
        return ["setpriv", *ids, "--clear-groups", *command]


def _unprivileged() -> pwd.struct_passwd:
    names = {user.pw_name: user for user in pwd.getpwall()}
    return names.get("postgres") or names["nobody"]


def _version(program: Path) -> float:
    return float(program.parts[-3])
