"""What a caller has set by POST /options, which holds for its own requests alone."""

from fastapi import Request

from serve_app.ingress.services import ApiServices

_CHECKPOINT = "sd_model_checkpoint"


async def chosen_checkpoint(request: Request, services: ApiServices) -> str | None:
    """Return the checkpoint that the caller has chosen, if there is a choice.

    Raises `LedgerAway`.
    """
    if len(services.info.model_names) < 2:
        return None
    return await services.jobs.ledger.option(request.state.caller, _CHECKPOINT)


async def choose_checkpoint(name: str, request: Request, services: ApiServices) -> None:
    """Keep that the caller has chosen a checkpoint. Raises `LedgerAway`."""
    await services.jobs.ledger.set_option(request.state.caller, _CHECKPOINT, name)
