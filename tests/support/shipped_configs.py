"""The configs that the repository ships."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "configs"
CONFIGS = [ROOT / "serve_config.yaml", *sorted(FOLDER.glob("*.yaml"))]
MANIFEST = FOLDER / "kuberay-rayservice.yaml"
