"""The pages for people, without a key: /, /docs, /openapi.json and the static files they load.

All files come from the package (`serve_app/web`), so that a page works without internet, and none
holds a script of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

WEB_FOLDER = Path(__file__).parents[1] / "web"
POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self' data: blob:; "
    "frame-ancestors 'none'"
)
DOCS_POLICY = f"{POLICY}; style-src 'self' 'unsafe-inline'"  # Swagger UI sets styles of elements
PAGE_POLICY = f"{POLICY}; style-src 'self'; base-uri 'none'; form-action 'none'"
_REVALIDATE = "no-cache"  # a browser may keep a file, and asks each time whether it is current
_MEDIA_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
_PAGE, _DOCS = "index.html", "docs.html"

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True)
class WebFile:
    """A file of the package as it is answered; equal bytes have equal tags."""

    content: bytes
    media_type: str
    tag: str

    def respond(self, request: Request, policy: str = POLICY) -> Response:
        """Return the file, or 304 if the client has it already (RFC 9110, section 13.1.2)."""
        headers = {
            "ETag": self.tag,
            "Cache-Control": _REVALIDATE,
            "Content-Security-Policy": policy,
        }
        if self._is_known(request.headers.get("if-none-match", "")):
            return Response(status_code=304, headers=headers)
        return Response(self.content, media_type=self.media_type, headers=headers)

    def _is_known(self, tags: str) -> bool:
        known = [tag.strip().removeprefix("W/") for tag in tags.split(",")]
        return self.tag in known or known == ["*"]


def read_web_files(folder: Path = WEB_FOLDER) -> Mapping[str, WebFile]:
    """Return the files that pages load, by their paths below the folder."""
    return MappingProxyType(
        {
            file.relative_to(folder).as_posix(): _read(file)
            for file in sorted(folder.rglob("*"))
            if file.suffix in _MEDIA_TYPES
        }
    )


def _read(file: Path) -> WebFile:
    content = file.read_bytes()
    tag = f'"{sha256(content).hexdigest()[:32]}"'
    return WebFile(content, _MEDIA_TYPES[file.suffix], tag)


_FILES = read_web_files()


@router.get("/")
async def page(request: Request) -> Response:
    """Return the page on which people make pictures."""
    return _FILES[_PAGE].respond(request, PAGE_POLICY)


@router.get("/docs")
async def docs(request: Request) -> Response:
    """Return the page that shows the API and tries it out."""
    return _FILES[_DOCS].respond(request, DOCS_POLICY)


@router.get("/openapi.json")
async def openapi(request: Request) -> Response:
    """Return the description of the API."""
    return JSONResponse(request.app.openapi())


@router.get("/static/{path:path}")
async def static_file(path: str, request: Request) -> Response:
    """Return a file that a page loads. Raises 404 for any other."""
    if path not in _FILES or path in (_PAGE, _DOCS):
        raise HTTPException(404)
    return _FILES[path].respond(request)
