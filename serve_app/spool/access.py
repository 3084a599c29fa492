"""Who may have access to the spool: the user of the service and nobody else.

A prompt is readable in it, and what it says is believed at the next start.
"""

import os
import stat


def access_problem(status: os.stat_result) -> str | None:
    """Return what is wrong with the owner or the mode of a file or folder; None if nothing is."""
    if status.st_uid != os.geteuid():
        return f"belongs to another user (uid {status.st_uid})"
    mode = stat.S_IMODE(status.st_mode)
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        return f"is open to other users (mode {mode:04o})"
    return None
