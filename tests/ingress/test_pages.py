"""/, /docs and the files that it loads: without a key, without internet, without inline scripts."""

import os
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx
import pytest

from scripts import vendor_swagger_ui
from serve_app.deployments.ledger import Ledger
from serve_app.ingress.access import AccessPolicy, digests
from serve_app.ingress.pages import WEB_FOLDER, read_web_files
from tests.support.api import Client, make_api
from tests.support.fake_conductor import FakeConductor

KEYED = AccessPolicy(keys=digests(["key"]))
POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:; frame-ancestors 'none'"
)
FILES = sorted(read_web_files())
OWN = [path for path in FILES if not path.startswith("swagger-ui/")]
SVG = "http://www.w3.org/2000/svg"  # a name, which nothing is loaded from


class Page(HTMLParser):
    """What a page refers to, and what of it is inline."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.inline: list[str] = []
        self._open_tag = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open_tag = tag
        for name, value in attrs:
            if name in ("src", "href", "action", "data", "poster", "srcset"):
                self.references.append(value or "")
            if name == "style" or name.startswith("on"):
                self.inline.append(f"{tag} {name}")

    def handle_data(self, data: str) -> None:
        if self._open_tag in ("script", "style") and data.strip():
            self.inline.append(data)


@pytest.mark.parametrize(("path", "scripts"), [("docs", 2), ("", 1)])
@pytest.mark.parametrize("base", ["http://localhost/", "http://localhost/aura/"])
async def test_a_page_loads_files_of_this_service_alone_and_all_are_there(
    base: str, path: str, scripts: int
) -> None:
    """Under a prefix too, as Serve has it with `route_prefix: /aura`."""
    prefix = urlsplit(base).path.rstrip("/")
    api = make_api(FakeConductor(), Ledger(None), policy=KEYED)
    transport = httpx.ASGITransport(app=api, root_path=prefix, client=("10.1.2.3", 1))
    async with httpx.AsyncClient(transport=transport) as http:
        answer = await http.get(urljoin(base, path))
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        page = Page(answer.text)
        assert not page.inline
        assert len([name for name in page.references if name.endswith(".js")]) == scripts
        for reference in page.references:
            if reference.startswith("#"):
                continue
            address = urljoin(str(answer.url), reference)
            assert address.startswith(base), reference
            assert (await http.get(address)).status_code == 200, reference


@pytest.mark.parametrize("path", OWN)
def test_no_file_of_ours_names_another_host(path: str) -> None:
    text = (WEB_FOLDER / path).read_text().replace(SVG, "")
    assert not re.search(r"""\w://|["'(]//""", text)


@pytest.mark.parametrize("path", [path for path in FILES if path.endswith(".css")])
def test_no_style_loads_another_file(path: str) -> None:
    text = (WEB_FOLDER / path).read_text()
    assert not re.findall(r"""(?:@import|url\()\s*["']?(?!data:)[^"')\s]+""", text)


@pytest.mark.parametrize("path", OWN)
def test_a_file_of_ours_is_short(path: str) -> None:
    assert len((WEB_FOLDER / path).read_text().splitlines()) < 400


async def test_the_policy_allows_files_of_this_service_alone(client: Client) -> None:
    http = client()
    docs = (await http.get("/docs")).headers["content-security-policy"]
    assert docs == f"{POLICY}; style-src 'self' 'unsafe-inline'"
    page = (await http.get("/")).headers["content-security-policy"]
    assert page == f"{POLICY}; style-src 'self'; base-uri 'none'; form-action 'none'"
    for path in FILES:
        if path not in ("docs.html", "index.html"):
            answer = await http.get(f"/static/{path}")
            assert answer.headers["content-security-policy"] == POLICY
            assert answer.headers["x-content-type-options"] == "nosniff"


async def test_the_key_of_docs_stays_in_its_tab() -> None:
    """Swagger UI keeps a key in localStorage, if it is let."""
    script = (WEB_FOLDER / "docs.js").read_text()
    assert "persistAuthorization: false" in script
    assert "sessionStorage" in script
    for place in ("localStorage", "document.cookie", "searchParams", "location.search"):
        assert place not in script


async def test_the_page_keeps_the_key_in_its_tab_and_sets_texts_as_text() -> None:
    """It has storage for pictures, the language and the theme, and a key goes in a header alone."""
    scripts = {path: (WEB_FOLDER / path).read_text() for path in OWN if path.startswith("page/")}
    for path, script in scripts.items():
        for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert way not in script, path
        for place in ("document.cookie", "searchParams", "location.search"):
            assert place not in script, path
        assert ("sessionStorage" in script) == (path == "page/key.js"), path
    assert "localStorage" not in scripts["page/key.js"]


async def test_a_browser_asks_whether_its_file_is_current_and_gets_no_second_copy(
    client: Client,
) -> None:
    http = client()
    for path in ("/docs", "/static/docs.js", "/static/swagger-ui/swagger-ui-bundle.js"):
        first = await http.get(path)
        assert first.headers["cache-control"] == "no-cache"
        tag = first.headers["etag"]
        for sent in (tag, f"W/{tag}", f'"other", {tag}', "*"):
            again = await http.get(path, headers={"If-None-Match": sent})
            assert (again.status_code, again.content) == (304, b"")
            assert again.headers["etag"] == tag
            assert "content-security-policy" in again.headers
        changed = await http.get(path, headers={"If-None-Match": '"other"'})
        assert (changed.status_code, changed.content) == (200, first.content)


def test_the_tag_of_a_file_is_that_of_its_content(tmp_path: Path) -> None:
    """A wheel gives every file one date, so neither date nor size tells versions apart."""
    tags = set()
    for content in ("let a = 1;", "let a = 2;"):
        (tmp_path / "a.js").write_text(content)
        os.utime(tmp_path / "a.js", (0, 0))
        tags.add(read_web_files(tmp_path)["a.js"].tag)
    assert len(tags) == 2


@pytest.mark.parametrize(
    "path",
    [
        *(
            "",
            "/",
            "docs.html",
            "index.html",
            "nothing.js",
            "../app.py",
            "..%2fapp.py",
            "swagger-ui",
        ),
        *("swagger-ui/LICENSE", "swagger-ui/../../app.py", "/etc/passwd", "%00"),
    ],
)
async def test_nothing_else_is_a_static_file(client: Client, path: str) -> None:
    answer = await client(policy=KEYED).get(f"/static/{path}")
    assert answer.status_code in (401, 404)  # a client may fold the dots before it asks
    assert answer.json()["error"]["code"] in ("NOT_FOUND", "UNAUTHORIZED")


async def test_the_description_says_which_routes_want_a_key(client: Client) -> None:
    document = (await client(policy=KEYED).get("/openapi.json")).json()
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert "security" in document["paths"]["/generate"]["post"]
    assert "security" not in document["paths"]["/health"]["get"]
    assert "/docs" not in document["paths"]
    assert "/static/{path}" not in document["paths"]
    plain = (await client().get("/openapi.json")).json()
    assert "securitySchemes" not in plain["components"]


def test_swagger_ui_is_whole_with_its_version_and_licence_and_nothing_more() -> None:
    folder = vendor_swagger_ui.FOLDER
    assert {file.name for file in folder.iterdir()} == {*vendor_swagger_ui.FILES, "VERSION"}
    version = vendor_swagger_ui.VERSION.read_text().strip()
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert "Apache License" in (folder / "LICENSE").read_text()
    assert "SwaggerUIBundle" in (folder / "swagger-ui-bundle.js").read_text()
