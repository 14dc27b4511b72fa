"""The description of the API: OpenAPI for the plain addresses, AsyncAPI for the live feed. Both are made from the code's types."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, Final

import msgspec

from tapeline.web import queries
from tapeline.web.live import messages
from tapeline.web.live.subscription import Request
from tapeline.web.overview import Alert, Overview
from tapeline.web.routes import ENDPOINTS, STREAM, Endpoint, Jobs, Wrong

_REFERENCE: Final = "#/components/schemas/{name}"
_TITLE: Final = "Tapeline"


class GapStates(msgspec.Struct):
    """How many gaps there are, by their state; null if no ledger is kept."""

    states: dict[str, int] | None


class AlertRows(msgspec.Struct):
    """The open alerts, and the latest of those that are over."""

    rows: list[Alert]


#: Each state of the live feed to the type of its body. Its message has `kind` and `id` besides.
STATE_BODIES: Final[dict[str, type[msgspec.Struct]]] = {"health": Overview, "gaps": GapStates, "jobs": Jobs, "alerts": AlertRows}
#: The other messages of the live feed.
_MESSAGES: Final = (
    messages.Hello,
    messages.TickRows,
    messages.BarRows,
    messages.LatestRows,
    messages.Conflated,
    messages.Alive,
    messages.Error,
)


def openapi() -> dict[str, Any]:
    """Return the OpenAPI 3.1 description of every address under /v1."""
    bodies = [one.query for one in ENDPOINTS if one.method == "POST"]
    answers = [one.answer for one in ENDPOINTS]
    _, components = msgspec.json.schema_components([*bodies, *answers, Wrong, *_MESSAGES], ref_template=_REFERENCE)
    paths: dict[str, Any] = {}
    for one in ENDPOINTS:
        paths.setdefault(one.path, {})[one.method.lower()] = _operation(one)
    paths[STREAM] = {"get": _stream()}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": _TITLE,
            "version": version("tapeline"),
            "description": "The history, the state and the live feed of a market data pipeline. Numbers of nanoseconds and sequence "
            "numbers are text, because JavaScript's numbers are not exact enough.",
        },
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{"token": []}, {}],
    }


def asyncapi() -> dict[str, Any]:
    """Return the AsyncAPI 3.0 description of the live feed."""
    _, components = msgspec.json.schema_components([*_MESSAGES, Request, *STATE_BODIES.values()], ref_template=_REFERENCE)
    components |= {f"{kind.title()}Message": _state(kind, body) for kind, body in STATE_BODIES.items()}
    sent: dict[str, Any] = {
        kind.__name__: {
            "name": kind.__name__,
            "summary": (kind.__doc__ or "").splitlines()[0],
            "contentType": "application/json",
            "payload": {"$ref": _REFERENCE.format(name=kind.__name__)},
        }
        for kind in (*_MESSAGES, Request)
    }
    for kind, body in STATE_BODIES.items():
        name = f"{kind.title()}Message"
        about = (body.__doc__ or "").splitlines()[0]
        sent[name] = {"name": name, "summary": about, "contentType": "application/json", "payload": {"$ref": _REFERENCE.format(name=name)}}
    channel = {"$ref": "#/channels/stream"}
    mine = [{"$ref": f"#/channels/stream/messages/{name}"} for name in sent if name != Request.__name__]
    return {
        "asyncapi": "3.0.0",
        "info": {"title": f"{_TITLE}: the live feed", "version": version("tapeline")},
        "channels": {
            "stream": {"address": STREAM, "messages": sent, "bindings": {"ws": {"method": "GET", "query": _object(queries.Stream)}}}
        },
        "operations": {
            "get": {"action": "send", "channel": channel, "messages": mine},
            "change": {"action": "receive", "channel": channel, "messages": [{"$ref": "#/channels/stream/messages/Request"}]},
        },
        "components": {"schemas": components},
    }


def _state(kind: str, body: type[msgspec.Struct]) -> dict[str, Any]:
    head = {"type": "object", "required": ["kind", "id"], "properties": {"kind": {"const": kind}, "id": {"type": "string"}}}
    return {"allOf": [head, {"$ref": _REFERENCE.format(name=body.__name__)}]}


def _operation(one: Endpoint) -> dict[str, Any]:
    answer: dict[str, Any] = {"application/json": {"schema": {"$ref": _REFERENCE.format(name=one.answer.__name__)}}}
    if one.formats:
        answer |= {"text/csv": {"schema": {"type": "string"}}, "application/vnd.apache.arrow.stream": {"schema": {"type": "string"}}}
    operation: dict[str, Any] = {
        "operationId": f"{one.method.lower()}_{one.path.removeprefix('/v1/').replace('/', '_')}",
        "summary": one.about,
        "responses": {
            ("202" if one.method == "POST" else "200"): {"description": (one.answer.__doc__ or "").splitlines()[0], "content": answer}
        }
        | _refusals(one),
    }
    if one.method == "POST":
        body = {"application/json": {"schema": {"$ref": _REFERENCE.format(name=one.query.__name__)}}}
        operation["requestBody"] = {"required": True, "content": body}
    else:
        operation["parameters"] = _parameters(one.query)
    return operation


def _refusals(one: Endpoint) -> dict[str, Any]:
    statuses = {"400": "A parameter is wrong.", "401": "A token is needed.", "403": "This is not allowed.", "503": "Try again later."}
    if one.method == "POST":
        statuses |= {"409": "Several are under way.", "415": "The body is not JSON."}
    content = {"application/json": {"schema": {"$ref": _REFERENCE.format(name=Wrong.__name__)}}}
    return {status: {"description": text, "content": content} for status, text in statuses.items()}


def _stream() -> dict[str, Any]:
    return {
        "operationId": "get_stream",
        "summary": "The live feed as server-sent events; the same address is a websocket. /v1/asyncapi.json describes the messages.",
        "parameters": _parameters(queries.Stream),
        "responses": {
            "200": {"description": "Events, without an end.", "content": {"text/event-stream": {"schema": {"type": "string"}}}},
            "400": {
                "description": "A parameter is wrong.",
                "content": {"application/json": {"schema": {"$ref": _REFERENCE.format(name=Wrong.__name__)}}},
            },
        },
    }


def _object(kind: type[msgspec.Struct]) -> dict[str, Any]:
    return dict(msgspec.json.schema(kind)["$defs"][kind.__name__])


def _parameters(kind: type[msgspec.Struct]) -> list[dict[str, Any]]:
    schema = _object(kind)
    required = set(schema.get("required", ()))
    return [
        {"name": name, "in": "query", "required": name in required, "schema": some, "description": some.get("description", "")}
        | ({"style": "form", "explode": False} if some.get("type") == "array" else {})  # values with commas between them
        for name, some in schema.get("properties", {}).items()
    ]
