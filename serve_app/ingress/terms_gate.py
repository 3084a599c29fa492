"""Whether a caller has accepted the models' licences, where the operator requires that."""

from serve_app.core.errors import TermsNotAccepted
from serve_app.core.service.info import ServiceInfo
from serve_app.ingress.contracts import Ledger


class TermsGate:
    """Lets callers through who have accepted the terms in force, as the ledger remembers."""

    def __init__(self, ledger: Ledger, info: ServiceInfo) -> None:
        self._ledger = ledger
        self._info = info
        self._accepted: set[str] = set()  # callers, so that the ledger is read once for each

    async def check(self, caller: str) -> None:
        """Return if the caller may make images; raise `TermsNotAccepted` if not."""
        if not self._info.terms_required or caller in self._accepted:
            return
        digest = self._info.terms_digest
        if await self._ledger.accepted_terms(caller) != digest:
            raise TermsNotAccepted(
                "the models' terms are not accepted",
                remedy="Read them at GET /licenses and accept them: "
                f'POST /licenses {{"accept": true, "termsDigest": "{digest}"}}',
            )
        self._accepted.add(caller)

    async def accept(self, caller: str, digest: str) -> None:
        """Remember that the caller accepts the terms; raise `TermsNotAccepted` for other terms."""
        if digest != self._info.terms_digest:
            raise TermsNotAccepted(
                "these terms are not in force", remedy="Read the current ones at GET /licenses"
            )
        await self._ledger.accept_terms(caller, digest)
