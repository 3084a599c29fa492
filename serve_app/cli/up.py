"""`aura up`: check the set-up, then start the process that runs Ray, and supervise it.

Two processes: this one is visible, has the terminal, and waits for signals; the one that runs Ray
(`cli/run_ray.py`) has a session of its own, because Ctrl-C would otherwise kill Ray before the
drain. No Ray: a problem is reported before Ray is imported, which takes a second, and this process
answers signals whatever has become of Ray.
"""

import os
import tempfile
from functools import partial
from pathlib import Path

from serve_app.cli.console import REFUSED, print_error
from serve_app.cli.ray_environment import ray_environment
from serve_app.cli.runner import Runner
from serve_app.cli.summary import print_summary
from serve_app.cli.supervisor import Supervisor
from serve_app.config.catalog import find_checkpoints
from serve_app.config.cloud_settings import counts_in
from serve_app.config.folders import check_folders, ray_folder, started_cluster
from serve_app.config.key_numbers import daily_quotas_by_key, weights_by_key
from serve_app.config.listening import check_listening
from serve_app.config.secret_file import secret_file, take_secrets
from serve_app.config.serve_config import read_config
from serve_app.config.settings import Settings, is_secret
from serve_app.core.errors import OperatorError
from serve_app.ledger_store.opening import check_place

_LOCK_WAIT_S = 10.0  # seconds in which the processes of a service that was killed should end


def up(config: Path, lock_wait_s: float = _LOCK_WAIT_S) -> int:
    """Run the service until it ends; return the exit code. Report problems before Ray starts.

    `lock_wait_s` is how long another service may take to give up the ledger.
    """
    try:
        read = read_config(config)
        read.check_applied()
        settings = Settings.read(read.args.settings)
        find_checkpoints(settings)
        settings.blocked_words()
        weights_by_key(settings)
        daily_quotas_by_key(settings)
        check_listening(settings, read.http)
        check_folders(settings.ledger, spool=settings.drain_spool)
        check_place(settings.ledger, lock_wait_s, lock=not _joins_cluster())
    except OperatorError as error:
        print_error(error)
        return REFUSED
    folder = ray_folder()
    folder.mkdir(parents=True, exist_ok=True)
    descriptor, log = tempfile.mkstemp(prefix="aura-up-", suffix=".log", dir=folder)
    os.close(descriptor)
    environment, secrets = take_secrets(ray_environment(settings, os.environ), is_secret)
    counting = {name: secrets[name] for name in secrets if counts_in(os.environ, name)}
    with secret_file(counting, folder) as variables:
        runner = Runner(["_run", "--config", str(config)], environment | variables, Path(log))
        summary = partial(print_summary, settings, read.http)
        return Supervisor(runner, Path(log), summary).run()


def _joins_cluster() -> bool:
    """Return whether a Ray runs already, in which this very service may be running."""
    return bool(os.environ.get("RAY_ADDRESS") or started_cluster())
