"""Every address under /v1: its parameters, its answer and what it does. The description of the API is made of this list."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import anyio.to_thread
import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from tapeline import times
from tapeline.errors import Busy, ConfigError, NewerData, Refused, TapelineError, WrongArgument
from tapeline.orchestration.listing import JobRow
from tapeline.orchestration.opening import open_database
from tapeline.orchestration.runs import Origin, Runs, State
from tapeline.web import queries
from tapeline.web.coverage import Evidence, Grid
from tapeline.web.history import MEDIA
from tapeline.web.live.messages import Bar, Latest, Tick
from tapeline.web.live.transports import event_stream, websocket
from tapeline.web.overview import Overview
from tapeline.web.parts import Parts
from tapeline.web.recent import Lines

#: Error to the status of its answer; any other TapelineError is 503: try again later.
_STATUSES: Final[Mapping[type[TapelineError], int]] = {WrongArgument: 400, ConfigError: 400, Busy: 409, Refused: 403, NewerData: 500}


class TickPage(msgspec.Struct):
    """Ticks from a store, as the live feed has them."""

    #: The position up to which the store has everything: `since` of the live feed.
    next: str
    rows: list[Tick]
    #: Whether there are more than the limit.
    truncated: bool


class BarPage(msgspec.Struct):
    """Bars from a store, as the live feed has them. `next` and `truncated` are as for ticks."""

    next: str
    rows: list[Bar]
    truncated: bool


class Intervals(msgspec.Struct):
    """Intervals of the ledger, the latest first."""

    rows: list[Evidence]


class Jobs(msgspec.Struct):
    """The jobs, as `tapeline jobs list --format json` shows them."""

    rows: list[JobRow]


class JobRun(msgspec.Struct, forbid_unknown_fields=True):
    """A run of a job, whoever started it. Times are ns, UTC, as text."""

    id: int
    job: str
    thing: str
    due_ns: str | None
    arguments: dict[str, Any]
    origin: Origin
    origin_id: str
    origin_url: str
    attempt: int
    process: str
    started_ns: str
    renewed_ns: str
    ended_ns: str | None
    state: State
    exit_status: int | None
    retry_ns: str | None
    progress: dict[str, Any]
    result: dict[str, Any]
    error: str


class JobRuns(msgspec.Struct):
    """Runs, the latest first."""

    rows: list[JobRun]


class Symbols(msgspec.Struct):
    """The symbols that the live feed has seen since its start, and their latest values."""

    rows: list[Latest]


class Started(msgspec.Struct):
    """A job that was started. Its run is in the list of the runs soon after."""

    job: str
    started: bool


class Wrong(msgspec.Struct):
    """What is wrong, and what to do."""

    error: str


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address."""

    path: str
    about: str
    query: type[msgspec.Struct]
    answer: type[msgspec.Struct]
    #: Answers a request whose parameters were checked.
    reply: Callable[[Parts, Any], Awaitable[Response]]
    method: str = "GET"
    #: Whether the parameter `format` chooses CSV or Arrow.
    formats: bool = False


async def _health(parts: Parts, query: queries.Health) -> Response:
    if not query.at:
        return _json(parts.looks.present())
    body = await anyio.to_thread.run_sync(parts.looks.at, times.parse(query.at, "at"))
    if body is None:
        raise WrongArgument(f"at = {query.at!r}: nothing is kept from then. The last hour is kept, while this server runs.")
    return _json(body)


async def _past(parts: Parts, query: queries.Past) -> Response:
    end_ns = times.parse(query.end, "end") if query.end else parts.clock()
    lines = await anyio.to_thread.run_sync(parts.looks.lines, end_ns, query.seconds, query.points)
    return _json(msgspec.json.encode(lines))


async def _symbols(parts: Parts, query: queries.Nothing) -> Response:
    del query
    return _json(b'{"rows":[' + b",".join(parts.hub.latest(sorted(parts.hub.symbols))) + b"]}")


def _streamed(name: str) -> Callable[[Parts, Any], Awaitable[Response]]:
    async def reply(parts: Parts, query: Any) -> Response:
        def ask() -> Iterator[bytes]:
            pieces: Iterator[bytes] = getattr(parts.history, name)(query)
            return pieces

        pieces = await anyio.to_thread.run_sync(ask, limiter=parts.limiter)
        return StreamingResponse(pieces, media_type=MEDIA[query.format])

    return reply


async def _coverage(parts: Parts, query: queries.Coverage) -> Response:
    return _json(msgspec.json.encode(await anyio.to_thread.run_sync(parts.history.coverage, query, limiter=parts.limiter)))


async def _jobs(parts: Parts, query: queries.Nothing) -> Response:
    del query
    return _json(msgspec.json.encode({"rows": parts.looks.jobs}))


async def _runs(parts: Parts, query: queries.Runs) -> Response:
    def ask() -> bytes:
        runs = Runs(open_database(parts.config)).of(query.job or None, query.limit)
        return msgspec.json.encode(JobRuns([msgspec.convert(_texts(msgspec.to_builtins(run)), JobRun) for run in runs]))

    return _json(await anyio.to_thread.run_sync(ask, limiter=parts.limiter))


async def _run_job(parts: Parts, wanted: queries.RunJob) -> Response:
    return _json(msgspec.json.encode(parts.actions.run(wanted)), 202)


async def _repair(parts: Parts, wanted: queries.Repair) -> Response:
    return _json(msgspec.json.encode(parts.actions.repair(wanted)), 202)


ENDPOINTS: Final = (
    Endpoint("/v1/health", "How the pipeline is, now or at a moment of the last hour.", queries.Health, Overview, _health),
    Endpoint("/v1/past", "The last hour as lines: rates, latencies, lag.", queries.Past, Lines, _past),
    Endpoint("/v1/symbols", "The symbols that are live, with their latest values.", queries.Nothing, Symbols, _symbols),
    Endpoint("/v1/ticks", "Trades and quotes from a store.", queries.Ticks, TickPage, _streamed("ticks"), formats=True),
    Endpoint("/v1/bars", "Bars from a store.", queries.Bars, BarPage, _streamed("bars"), formats=True),
    Endpoint("/v1/gaps", "What is missing, and the evidence of what is not.", queries.Gaps, Intervals, _streamed("gaps"), formats=True),
    Endpoint("/v1/coverage", "Is it complete? A grid of symbols and hours or days.", queries.Coverage, Grid, _coverage),
    Endpoint("/v1/jobs", "The jobs: last run, next run, late.", queries.Nothing, Jobs, _jobs),
    Endpoint("/v1/runs", "The runs of the jobs, whoever started them.", queries.Runs, JobRuns, _runs),
    Endpoint("/v1/jobs/run", "Run a job now.", queries.RunJob, Started, _run_job, method="POST"),
    Endpoint("/v1/repair", "Request gaps from the provider's history.", queries.Repair, Started, _repair, method="POST"),
)
STREAM: Final = "/v1/stream"


def routes(parts: Parts) -> list[Route | WebSocketRoute]:
    """Return the routes of all addresses under /v1, with the live feed's two."""

    async def feed(request: Request) -> Response:
        try:
            return await event_stream(request, parts.hub)
        except TapelineError as error:
            return _wrong(error)

    async def socket(connection: WebSocket) -> None:
        await websocket(connection, parts.hub)

    plain = [Route(one.path, _answer(one, parts), methods=[one.method]) for one in ENDPOINTS]
    return [*plain, Route(STREAM, feed), WebSocketRoute(STREAM, socket)]


def _answer(endpoint: Endpoint, parts: Parts) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        try:
            if endpoint.method == "GET":
                query: Any = queries.read(endpoint.query, dict(request.query_params))
            else:
                query = msgspec.json.decode(await request.body(), type=endpoint.query)
            return await endpoint.reply(parts, query)
        except (msgspec.ValidationError, msgspec.DecodeError) as error:
            return _wrong(WrongArgument(f"The request's body is wrong: {error}."))
        except TapelineError as error:
            return _wrong(error)

    return answer


def _wrong(error: TapelineError) -> Response:
    status = next((status for kind, status in _STATUSES.items() if isinstance(error, kind)), 503)
    return JSONResponse({"error": str(error)}, status)


def _json(body: bytes, status: int = 200) -> Response:
    return Response(body, status, media_type="application/json", headers={"Cache-Control": "no-store"})


def _texts(row: dict[str, Any]) -> dict[str, Any]:
    """Times in ns as text: JavaScript's numbers are not exact enough."""
    return {name: str(value) if name.endswith("_ns") and value is not None else value for name, value in row.items()}
