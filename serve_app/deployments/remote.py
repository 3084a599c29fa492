"""A stage as the conductor sees it: Ray's handle behind the `StageClient` contract.

Knows no samples' insides. Ray's own errors stop here and become named ones.
"""

from collections.abc import AsyncIterator
from typing import Any, cast

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from serve_app.core.errors import AuraError, EngineFault, Loading, ReplicaLost
from serve_app.core.events import ReplicaFacts
from serve_app.core.sample import Leg, Sample
from serve_app.core.spec import Stage

_PATIENCE = 2.0  # seconds to wait for facts: health must answer while a replica is busy or gone


class RemoteStage:
    """Whichever replica of a deployment takes the sample."""

    def __init__(self, stage: Stage, handle: "DeploymentHandle[Any]") -> None:
        self._stage = stage
        self._handle = handle
        self._streaming = handle.options(stream=True)

    async def advance(self, sample: Sample[Any], leg: Leg) -> AsyncIterator[Any]:
        """The events of the replica that took the sample.

        Raises `ReplicaLost` when its process is gone, `Loading` when the deployment can't be
        reached, or the named error the replica raised. Closing it early cancels the sample there.
        """
        response = cast(
            "DeploymentResponseGenerator[Any]", self._streaming.advance.remote(sample, leg)
        )
        try:
            async for event in response:
                yield event
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, AuraError):
                raise cause from None
            raise EngineFault(f"the {self._stage} replica failed") from error
        except RayError as error:  # the process, its node, or what it had stored there is gone
            raise ReplicaLost(f"a {self._stage} replica is gone") from error
        except DeploymentUnavailableError as error:
            raise Loading(f"the {self._stage} stage is not ready") from error
        finally:
            response.cancel()

    async def facts(self) -> list[ReplicaFacts]:
        """The facts of every replica that answers in time; none while the stage is loading."""
        try:
            calls = self._handle.broadcast("facts")
            answers = await calls.results_async(timeout_s=_PATIENCE, return_exceptions=True)
        except (TimeoutError, RayError, DeploymentUnavailableError):
            return []
        return [answer for answer in answers if isinstance(answer, ReplicaFacts)]
