"""Who may look at the dashboard's server and who may act, and that other sites are kept out."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from starlette.responses import PlainTextResponse

from tapeline.config import DashboardConfig, dashboard_tokens
from tapeline.errors import ConfigError
from tapeline.secret import NO_SECRET, Secret
from tapeline.web.access import COOKIE, Guarded, Rules, cookie_of, login, rules_of

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

VIEWER, OPERATOR = Secret("viewer-0123456789abcdef"), Secret("operator-0123456789abcdef")
HOST = "127.0.0.1:8765"
JSON = {"content-type": "application/json"}


async def inside(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse(f"inside as {scope['tapeline.role']}")(scope, receive, send)


def ask(rules: Rules, method: str = "GET", path: str = "/v1/health", kind: str = "http", **headers: str) -> tuple[int, dict[str, str], str]:
    """The status, the headers and the body of an answer."""
    sent: list[dict[str, Any]] = []
    named = {"host": HOST, **{name.replace("_", "-"): value for name, value in headers.items()}}
    scope = {"type": kind, "method": method, "path": path, "headers": [(n.encode(), v.encode()) for n, v in named.items()]}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Guarded(inside, rules, ("/login",))(scope, receive, send))
    if kind == "websocket":
        return int(sent[0]["code"]), {}, ""
    answered = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], answered, b"".join(message.get("body", b"") for message in sent[1:]).decode()


def rules(viewer: Secret = NO_SECRET, operator: Secret = NO_SECRET, **settings: Any) -> Rules:
    return rules_of(DashboardConfig(**settings), viewer, operator)


def test_on_loopback_everybody_may_look_and_nobody_may_act() -> None:
    assert ask(rules())[2] == "inside as viewer"
    status, _, body = ask(rules(), "POST", **JSON)
    assert (status, "operator's token" in body) == (403, True)
    assert ask(rules(actions=True), "POST", content_type="application/json")[2] == "inside as operator"


def test_a_token_is_needed_where_there_is_one() -> None:
    with_tokens = rules(VIEWER, OPERATOR)
    assert ask(with_tokens)[0] == 401
    assert ask(with_tokens, authorization="Bearer wrong")[0] == 401
    assert ask(with_tokens, authorization=f"Basic {VIEWER.reveal()}")[0] == 401
    assert ask(with_tokens, authorization=f"Bearer {VIEWER.reveal()}")[2] == "inside as viewer"
    assert ask(with_tokens, authorization=f"bearer {OPERATOR.reveal()}")[2] == "inside as operator"
    assert ask(with_tokens, "POST", content_type="application/json", authorization=f"Bearer {VIEWER.reveal()}")[0] == 403
    assert ask(with_tokens, "POST", content_type="application/json", authorization=f"Bearer {OPERATOR.reveal()}")[0] == 200
    assert ask(with_tokens, kind="websocket")[0] == 1008


def test_a_browser_is_sent_to_the_page_that_takes_the_token() -> None:
    status, headers, _ = ask(rules(VIEWER), path="/", accept="text/html")
    assert (status, headers["location"]) == (303, "/login")
    assert ask(rules(VIEWER), path="/login")[0] == 200


def test_the_cookie_of_the_page_is_as_good_as_the_token_and_does_not_tell_it() -> None:
    with_tokens = rules(VIEWER, OPERATOR)
    for token, role in ((VIEWER, "viewer"), (OPERATOR, "operator")):
        answer = login({"token": token.reveal()}, with_tokens)
        cookie = answer.headers["set-cookie"]
        assert answer.status_code == 303
        assert token.reveal() not in cookie
        assert all(part in cookie for part in ("HttpOnly", "SameSite=strict"))
        assert ask(with_tokens, cookie=cookie.partition(";")[0])[2] == f"inside as {role}"
    assert login({"token": "wrong"}, with_tokens).status_code == 403
    assert login({}, with_tokens).status_code == 403
    assert ask(with_tokens, cookie=f"{COOKIE}={VIEWER.reveal()}")[0] == 401, "the token itself is no cookie"
    assert cookie_of(VIEWER) != cookie_of(OPERATOR)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", ""])
def test_a_foreign_name_that_leads_to_this_machine_gets_no_answer(host: str) -> None:
    assert ask(rules(), host=host)[0] == 403


def test_a_configured_name_is_ours() -> None:
    assert ask(rules(hosts=("tapeline.example.com",)), host="Tapeline.example.com:443")[0] == 200
    assert ask(rules(), host="[::1]:8765")[0] == 200


def test_pages_of_other_sites_get_no_answer_unless_they_are_configured() -> None:
    assert ask(rules(), origin="https://evil.example")[0] == 403
    assert ask(rules(), kind="websocket", origin="https://evil.example")[0] == 1008
    assert ask(rules(), origin="null")[0] == 403
    assert ask(rules(), origin=f"http://{HOST}")[0] == 200
    mine = rules(origins=("https://www.example.com",))
    status, headers, _ = ask(mine, origin="https://www.example.com")
    assert (status, headers["access-control-allow-origin"]) == (200, "https://www.example.com")
    status, headers, _ = ask(mine, "OPTIONS", origin="https://www.example.com")
    assert (status, "authorization" in headers["access-control-allow-headers"]) == (204, True)
    assert "access-control-allow-origin" not in ask(mine)[1]


def test_a_form_of_another_site_cannot_act() -> None:
    anybody = rules(actions=True)
    assert ask(anybody, "POST", content_type="text/plain")[0] == 415
    assert ask(anybody, "POST", content_type="application/x-www-form-urlencoded")[0] == 415
    assert ask(anybody, "POST", content_type="application/json", sec_fetch_site="cross-site")[0] == 403
    assert ask(anybody, "POST", content_type="application/json", sec_fetch_site="same-origin")[0] == 200


def test_every_answer_has_the_policy_that_lets_a_page_load_nothing_foreign() -> None:
    for status, headers, _ in (ask(rules()), ask(rules(), host="evil.example")):
        assert status in (200, 403)
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


def test_an_address_that_others_can_reach_needs_a_token() -> None:
    with pytest.raises(ConfigError, match="there is no token"):
        rules(listen="0.0.0.0:8765")
    assert ask(rules(VIEWER, listen="0.0.0.0:8765"))[0] == 401
    only_operator = rules(NO_SECRET, OPERATOR, listen="0.0.0.0:8765")
    assert ask(only_operator)[0] == 401
    assert ask(only_operator, authorization=f"Bearer {OPERATOR.reveal()}")[0] == 200
    with pytest.raises(ConfigError, match="belong together"):
        rules(tls_key="key.pem")


def test_a_token_comes_from_a_file_or_the_environment_and_is_long(tmp_path: Any) -> None:
    (tmp_path / "token").write_text(f"{VIEWER.reveal()}\n")
    some = DashboardConfig(token_file=str(tmp_path / "token"))
    assert dashboard_tokens(some, {"TAPELINE_DASHBOARD_OPERATOR_TOKEN": OPERATOR.reveal()}) == (VIEWER, OPERATOR)
    with pytest.raises(ConfigError, match="shorter than 16"):
        dashboard_tokens(DashboardConfig(), {"TAPELINE_DASHBOARD_TOKEN": "short"})
