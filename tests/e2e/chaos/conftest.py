"""One sleeping service for the short tests, and the table at the end of the run."""

from collections.abc import Iterator

import pytest
from rich.console import Console

from tests.e2e.chaos.report import print_report
from tests.e2e.chaos.service import ChaosService, OwnRay, own_ray, own_service, shared_service


@pytest.fixture(scope="session")
def chaos(cluster: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChaosService]:
    """Start two base replicas, two refiners and an ingress, all ten times as fast as SDXL."""
    folder = tmp_path_factory.mktemp("chaos")
    with shared_service(cluster, folder, "chaos", seconds_scale=0.1) as service:
        yield service


@pytest.fixture(scope="session")
def ray_of_its_own(environment: dict[str, str]) -> Iterator[OwnRay]:
    """Start the Ray of the long tests, whose processes they kill."""
    with own_ray() as ray:
        yield ray


@pytest.fixture(scope="module")
def chaos_alone(
    ray_of_its_own: OwnRay, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ChaosService]:
    """Start a service on that Ray whose steps take a third of SDXL's time."""
    folder = tmp_path_factory.mktemp("service")
    with own_service(ray_of_its_own, folder, seconds_scale=0.3) as service:
        yield service


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table."""
    width = max(100, terminalreporter._tw.fullwidth)
    terminalreporter.ensure_newline()
    print_report(Console(file=terminalreporter._tw._file, width=width, highlight=False))
