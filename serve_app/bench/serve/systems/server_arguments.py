"""`ServerArguments`: what a `ServerProcess` hands to its program, by the command line."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class ServerArguments:
    """The arguments of such a program; `loras` are files by name."""

    port: int
    checkpoint: str
    threads: int
    images: int
    loras: Mapping[str, str]

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Self:
        """Return what `to_list` has written."""
        port, checkpoint, threads, images, *loras = arguments
        named = dict(lora.split("=", 1) for lora in loras)
        return cls(int(port), checkpoint, int(threads), int(images), named)

    def to_list(self) -> list[str]:
        """Return the arguments as the command line has them."""
        loras = [f"{name}={file}" for name, file in self.loras.items()]
        return [str(self.port), self.checkpoint, str(self.threads), str(self.images), *loras]
