"""Ask /ready of the Tapeline in this container: the health check of the image. Status 0: every stage has reported."""

from __future__ import annotations

import http.client
import os
import sys


def main() -> int:
    """Print the answer, which names the stages that do not report. The exit status is 1 if there are any, or no answer."""
    port = os.environ.get("TAPELINE_MONITOR__LISTEN", ":9464").rpartition(":")[2]
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=5)
    try:
        connection.request("GET", "/ready")
        answer = connection.getresponse()
        sys.stdout.write(answer.read().decode())
    except OSError as error:
        sys.stdout.write(f"nothing answers: {error}\n")
        return 1
    return 0 if answer.status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
