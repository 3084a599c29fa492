"""The ways a replica can be lost while it has an image, as kinds of `ReplicaLost`."""

from serve_app.core.errors import ReplicaLost, ServiceError


class ReplicaDied(ReplicaLost):
    """The replica's process has ended, with whatever it was doing."""


class ReplicaSilent(ReplicaLost):
    """The replica sends no news: it is stopped, or cut off."""


class TurnOverdue(ReplicaLost):
    """The replica reports that its engine's turn does not end."""


class LeaseExpired(ReplicaLost):
    """The replica has heard nothing of the image's sender for so long that it dropped the image."""


class TakenOver(ServiceError):
    """Another process works at the image's job: this one was taken for gone, and is cut off.

    Whoever waits for the job joins the other process. Its code reaches no caller.
    """

    code = ReplicaLost.code


class ReplicasExhausted(ReplicaLost):
    """So many replicas were lost with this image that it is given up."""

    is_final = True
