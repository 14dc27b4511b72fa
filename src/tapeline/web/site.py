"""The pages: the dashboard's built files, or a plain page with what `tapeline status` says; and the page that takes a token."""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl

from rich.console import Console
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from tapeline.monitor.terminal import tables
from tapeline.web.access import LOGIN, Rules, login

#: Where the front end's files are after `npm run build` in web/. A wheel has them too.
ASSETS: Final = Path(__file__).parent / "assets"
#: What a page needs before there is a token.
PUBLIC: Final = (LOGIN, "/plain.css")
_MOST_FORM: Final = 10_000
_WIDTH: Final = 110
#: The name of a built file has a checksum in it, so a browser may keep it.
_FOR_EVER: Final = "public, max-age=31536000, immutable"
_STYLE: Final = """:root { color-scheme: light dark; font-family: system-ui, sans-serif; }
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem; line-height: 1.5; }
pre { overflow-x: auto; line-height: 1.35; }
input, button { font: inherit; padding: 0.4rem 0.6rem; }
"""


class _Built(StaticFiles):
    def file_response(self, full_path: Any, stat_result: Any, scope: Scope, status_code: int = 200) -> Response:
        """Send a file, which a browser may keep for ever."""
        answer = super().file_response(full_path, stat_result, scope, status_code)
        answer.headers["cache-control"] = _FOR_EVER
        return answer


def pages(rules: Rules, snapshot: Callable[[], Mapping[str, Any]], assets: Path = ASSETS) -> list[Route | Mount]:
    """Return the routes of all pages. `snapshot`: what `monitor.health` says."""

    async def index(request: Request) -> Response:
        del request
        if (assets / "index.html").exists():
            return FileResponse(assets / "index.html", headers={"Cache-Control": "no-cache"})
        return plain(snapshot())

    async def enter(request: Request) -> Response:
        if request.method == "GET":
            return _page("Tapeline", _FORM)
        body = await request.body()
        return login(dict(parse_qsl(body[:_MOST_FORM].decode("utf-8", "replace"))), rules)

    async def style(request: Request) -> Response:
        del request
        return Response(_STYLE, media_type="text/css")

    found: list[Route | Mount] = [Route("/", index), Route(LOGIN, enter, methods=["GET", "POST"]), Route("/plain.css", style)]
    if (assets / "assets").exists():
        found.append(Mount("/assets", _Built(directory=assets / "assets")))
    return found


def plain(snapshot: Mapping[str, Any]) -> HTMLResponse:
    """Return the plain page. It reloads itself."""
    text = io.StringIO()
    Console(file=text, width=_WIDTH, no_color=True).print(tables(snapshot))
    note = "The dashboard's page was not built: install Node.js and run <code>npm ci &amp;&amp; npm run build</code> in web/. This is what "
    body = f"<h1>Tapeline</h1><p>{note}<code>tapeline status</code> says.</p><pre>{html.escape(text.getvalue())}</pre>"
    return _page("Tapeline", body, reload=True)


_FORM: Final = (
    f'<h1>Tapeline</h1><form method="post" action="{LOGIN}"><p><label>Token '
    '<input name="token" type="password" autocomplete="current-password" autofocus required></label> <button>Enter</button></p></form>'
)


def _page(title: str, body: str, *, reload: bool = False) -> HTMLResponse:
    refresh = '<meta http-equiv="refresh" content="5">' if reload else ""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width">{refresh}'
    links = '<link rel="icon" href="data:,"><link rel="stylesheet" href="/plain.css">'
    text = f'<!doctype html><html lang="en"><head>{head}{links}<title>{title}</title></head><body>{body}</body></html>'
    return HTMLResponse(text, headers={"Cache-Control": "no-store"})
