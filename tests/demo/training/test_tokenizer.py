"""The tokenizer: the same file from the same seed, in any process on any machine."""

import json
from pathlib import Path

from serve_app.core.diffusion.spec import Stage
from serve_app.demo.training.tokenizer import new_tokenizer
from serve_app.runtime.checkpoints.bundled import demo_folder


def test_the_recipe_makes_the_very_tokenizer_that_is_shipped(tmp_path: Path) -> None:
    """The trainer's hash tables differ from process to process; what it learns must not."""
    record = json.loads((demo_folder(Stage.BASE) / "training.json").read_text())
    new_tokenizer(tmp_path, record["base"]["made"][0]["seed"])
    made = (tmp_path / "tokenizer.json").read_bytes()
    for stage, names in (
        (Stage.BASE, ("tokenizer", "tokenizer_2")),
        (Stage.REFINER, ("tokenizer_2",)),
    ):
        for name in names:
            assert (demo_folder(stage) / name / "tokenizer.json").read_bytes() == made
