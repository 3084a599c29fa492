"""The tools as a client sees them, and what runs each."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mcp_types import CallToolResult, Tool, ToolAnnotations

from serve_app.core.service.info import ServiceInfo
from serve_app.ingress.mcp import tools
from serve_app.ingress.mcp.arguments import (
    Arguments,
    GenerateArguments,
    JobArguments,
    NoArguments,
    RefineArguments,
    StatusArguments,
    input_schema,
)
from serve_app.ingress.mcp.output import ModelsOutput
from serve_app.ingress.mcp.rerun import GENERATE, REFINE
from serve_app.ingress.mcp.tools import Call


@dataclass(frozen=True, slots=True)
class ToolDefinition:
    """A tool: its texts, what it takes, and what runs it.

    `hints` are MCP's annotations. `structured` is what a result has beside its blocks; a tool with
    images has none, since some clients show a model nothing else of a result that has it.
    """

    title: str
    description: str
    arguments: type[Arguments]
    run: Callable[[Call, Any], Awaitable[CallToolResult]]
    hints: Mapping[str, bool]
    draws: bool = False
    structured: type[ModelsOutput] | None = None

    def described(self, name: str, info: ServiceInfo) -> Tool:
        """Return the tool as it is listed, with the limits of this service."""
        notice = f" Note: {info.cloud_notice}." if self.draws and info.cloud_notice else ""
        output = self.structured
        sends_away = self.draws and bool(info.cloud_notice)
        return Tool(
            name=name,
            title=self.title,
            description=self.description + notice,
            input_schema=input_schema(self.arguments, info),
            output_schema=output and output.model_json_schema(mode="serialization"),
            annotations=ToolAnnotations(title=self.title, open_world_hint=sends_away, **self.hints),
        )


def about(info: ServiceInfo) -> str:
    """Return what an assistant should know of the service."""
    notice = f" Note: {info.cloud_notice}." if info.cloud_notice else ""
    return (
        "Draws images. An answer has a small JPEG, for you to look at, and a link to the whole "
        f"PNG: give that one to the user.{notice}"
    )


_DRAWS = {"read_only_hint": False, "destructive_hint": False}
_READS = {"read_only_hint": True}
TOOLS: Mapping[str, ToolDefinition] = {
    GENERATE: ToolDefinition(
        "Generate an image",
        "Draw images from a prompt. Describe what is to be seen, not what to do. Answers a small "
        "JPEG to look at, and a link to the whole PNG for the user.",
        GenerateArguments,
        tools.generate,
        _DRAWS,
        draws=True,
    ),
    REFINE: ToolDefinition(
        "Change an image",
        "Draw an image anew, by a prompt and a strength: an image of an earlier job, or a file.",
        RefineArguments,
        tools.refine,
        _DRAWS,
        draws=True,
    ),
    "job_status": ToolDefinition(
        "Status of a job",
        "How far a job is, or its images, which are kept for ten minutes.",
        StatusArguments,
        tools.job_status,
        _READS,
    ),
    "cancel_job": ToolDefinition(
        "Cancel a job",
        "Cancel a job that still runs; its images are lost.",
        JobArguments,
        tools.cancel_job,
        {"read_only_hint": False, "destructive_hint": True, "idempotent_hint": True},
    ),
    "list_models": ToolDefinition(
        "List the models",
        "The models that draw, with their LoRAs, and the samplers and aspect ratios.",
        NoArguments,
        tools.list_models,
        _READS,
        structured=ModelsOutput,
    ),
}
