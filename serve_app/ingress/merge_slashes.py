"""Reads several slashes in a path as one, as nginx does (`merge_slashes`).

People give clients an address with a slash at its end, to which these add one of their own: Open
WebUI asks for //sdapi/v1/options then. It stands outside of all that decides by the path.
"""

import re

from starlette.types import ASGIApp, Receive, Scope, Send

_SLASHES = re.compile("/{2,}")


class MergeSlashesMiddleware:
    """Passes requests on with the path that was meant."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "http" and "//" in scope["path"]:
            scope = {**scope, "path": _SLASHES.sub("/", scope["path"])}
        await self._app(scope, receive, send)
