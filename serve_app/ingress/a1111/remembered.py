"""What a caller has set by POST /options, which holds for its own requests alone."""

from fastapi import Request

from serve_app.core.service.info import ModelInfo, ServiceInfo
from serve_app.ingress.services import ApiServices

_CHECKPOINT = "sd_model_checkpoint"


async def chosen_checkpoint(request: Request, services: ApiServices) -> str | None:
    """Return the checkpoint that the caller has chosen, which may be configured no longer.

    Where there is one model alone there is no choice, and no image waits for the ledger. Raises
    `LedgerAway`.
    """
    if len(services.info.model_names) < 2:
        return None
    return await services.jobs.ledger.option(request.state.caller, _CHECKPOINT)


async def choose_checkpoint(name: str, request: Request, services: ApiServices) -> None:
    """Keep that the caller has chosen a checkpoint. Raises `LedgerAway`."""
    await services.jobs.ledger.set_option(request.state.caller, _CHECKPOINT, name)


def model_by_choice(chosen: str | None, info: ServiceInfo) -> tuple[ModelInfo, list[str]]:
    """Return the model of a chosen checkpoint, and a warning if it is configured no longer.

    Without a choice that is the default model. The choice is kept: the checkpoint may come back.
    """
    model = info.find_model(chosen) if chosen else info.default_model
    if model is not None:
        return model, []
    return info.default_model, [
        f"the chosen checkpoint {chosen} is configured no longer: {info.default_model.name} was "
        "used. Choose again by POST /sdapi/v1/options"
    ]
