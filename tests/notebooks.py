"""What a notebook shows: its texts, its picture, and that it is a whole run with nothing of the machine in it."""

from __future__ import annotations

import base64
import re
from typing import Any

import nbformat

#: Folders of one machine; a closing tag of HTML has no second slash.
ABSOLUTE = re.compile(r"(?<![\w.:/])/\w[\w.-]*/|[A-Za-z]:\\\\|file:")


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def said(notebook: Any) -> str:
    """What the notebook printed. It wrote nothing to standard error."""
    streams = [output for output in outputs(notebook) if output.output_type == "stream"]
    assert {output.name for output in streams} == {"stdout"}
    return "".join(output.text for output in streams)


def shown(notebook: Any) -> bytes:
    """The one picture among the outputs."""
    (picture,) = [output.data["image/png"] for output in outputs(notebook) if "image/png" in output.get("data", {})]
    return base64.b64decode(picture)


def shows_a_whole_run(notebook: Any) -> None:
    """Check that every cell ran, in order and without an error, and that no folder of a machine and no control character is shown."""
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert "error" not in {output.output_type for output in outputs(notebook)}
    texts = [said(notebook)]
    texts += [text for output in outputs(notebook) for kind, text in output.get("data", {}).items() if kind.startswith("text/")]
    for text in (*texts, *(cell.source for cell in notebook.cells)):
        assert not ABSOLUTE.search(text), text
        assert not re.search(r"[\x00-\x09\x0b-\x1f]", text)
