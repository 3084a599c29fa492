"""Put one version of Swagger UI, as npm has it, into the package; needs npm.

Run it with `make swagger-ui`, or with a version: `python -m scripts.vendor_swagger_ui 5.35.0`.
Nothing is changed in the files; source maps and the bundles that /docs does not load are left out.
"""

import subprocess
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

FOLDER = Path(__file__).parent.parent / "serve_app" / "web" / "swagger-ui"
FILES = (
    "swagger-ui-bundle.js",
    "swagger-ui.css",
    "LICENSE",
    "NOTICE",
    "swagger-ui-bundle.js.LICENSE.txt",  # of what the bundle contains
)
VERSION = FOLDER / "VERSION"


def vendor(version: str) -> None:
    """Replace the vendored files by those of a version."""
    with TemporaryDirectory() as folder:
        command = ["npm", "pack", "--silent", f"swagger-ui-dist@{version}"]
        packed = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
        with tarfile.open(Path(folder) / packed.stdout.split()[-1]) as archive:
            for name in FILES:
                file = archive.extractfile(f"package/{name}")
                assert file is not None
                (FOLDER / name).write_bytes(file.read())
    VERSION.write_text(f"{version}\n")


if __name__ == "__main__":
    vendor(sys.argv[1] if len(sys.argv) > 1 else VERSION.read_text().strip())
