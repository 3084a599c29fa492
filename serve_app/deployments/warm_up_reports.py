"""`WarmUpReports`: a replica that starts tells the ledger how far it is.

Nobody can ask the replica before it is ready, so /health reads it in the ledger.
"""

from typing import Any
from uuid import uuid4

from ray.serve.handle import DeploymentHandle

from serve_app.core.service.warm_ups import WarmUp


class WarmUpReports:
    """The reports of one replica. Nothing waits for an answer, and one that is lost is no harm."""

    def __init__(self, ledger: "DeploymentHandle[Any] | None") -> None:
        """Report to a ledger; None: to nobody."""
        self._ledger = ledger
        self._replica = uuid4().hex

    def __call__(self, warm_up: WarmUp) -> None:
        """Report how far the replica is."""
        if self._ledger is not None:
            self._ledger.note_warm_up.remote(self._replica, warm_up)
