"""Warnings as headers: each once, and together within what a proxy accepts."""

from starlette.responses import Response

from serve_app.ingress.responses import WARNING_HEADER, add_warnings


def headers_of(warnings: list[str]) -> list[str]:
    return add_warnings(Response(), warnings).headers.getlist(WARNING_HEADER)


def test_each_warning_stands_once_in_a_header_of_its_own() -> None:
    assert headers_of(["b is ignored", "a is ignored", "b is ignored"]) == [
        "b is ignored",
        "a is ignored",
    ]


def test_many_warnings_fit_into_the_headers_that_nginx_takes() -> None:
    """Its proxy_buffer_size is 4 KB for all headers; more is a 502 without the image."""
    headers = headers_of([f"{number:03} " + "x " * 40 for number in range(100)])
    assert sum(len(header) + len(WARNING_HEADER) + 4 for header in headers) < 2200
    assert headers[0].startswith("000 ")
    assert headers[-1] == f"{100 - len(headers) + 1} more warnings are left out here"
