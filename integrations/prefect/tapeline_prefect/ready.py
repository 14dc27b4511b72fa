"""`python -m tapeline_prefect.ready`: asks Prefect's server whether Tapeline's jobs are served. The health check of the container."""

from __future__ import annotations

import base64
import json
import os
import sys
import urllib.request
from typing import Final

_PATIENCE_S: Final = 10.0


def served(api: str, auth: str, name: str) -> str:
    """Why the deployments called `name` are not served; empty if they are. `auth`: user and password with a colon between them, or empty.

    Prefect calls a deployment ready as long as somebody asks for its runs."""
    headers = {"Content-Type": "application/json"}
    if auth:
        headers["Authorization"] = f"Basic {base64.b64encode(auth.encode()).decode()}"
    asked = json.dumps({"deployments": {"name": {"any_": [name]}}}).encode()
    request = urllib.request.Request(f"{api}/deployments/filter", asked, headers)
    try:
        with urllib.request.urlopen(request, timeout=_PATIENCE_S) as answer:
            found = json.load(answer)
    except OSError as error:
        return f"Prefect's server at {api} does not answer: {error}"
    if not found:
        return f"Prefect has no deployment called {name}."
    waiting = sum(one["status"] != "READY" for one in found)
    return f"{waiting} of {len(found)} deployments called {name} are not served." if waiting else ""


def main() -> int:
    """Status 1: the printed line says why the jobs are not served. The name of the deployments may be given; otherwise it is tapeline."""
    name = sys.argv[1] if len(sys.argv) > 1 else "tapeline"
    why = served(os.environ["PREFECT_API_URL"], os.environ.get("PREFECT_API_AUTH_STRING", ""), name)
    print(why or f"The deployments called {name} are served.")  # noqa: T201 Docker keeps it with the container's health
    return 1 if why else 0


if __name__ == "__main__":
    sys.exit(main())
