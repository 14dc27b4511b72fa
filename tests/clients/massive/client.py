"""The client `massive`: `client.py HOST:PORT MARKET TOPICS [CA-FILE]` prints every event it parsed as a JSON line."""

import json
import sys

from massive import WebSocketClient


def main() -> None:
    place, market, topics, *rest = sys.argv[1:]
    client = WebSocketClient(
        api_key="demo",
        feed=place,
        market=market,
        subscriptions=topics.split(","),
        secure=bool(rest),
        ca_certs=rest[0] if rest else None,
    )

    def on_messages(messages: list) -> None:
        for message in messages:
            print(json.dumps({"type": type(message).__name__, **vars(message)}), flush=True)

    client.run(on_messages)


main()
