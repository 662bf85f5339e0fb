"""Runs the notebook of docs/ without Jupyter: its code cells in order, in one namespace, as one would type them.

python -m tests.notebook

runs it in a temporary folder and saves what its cells print and draw, which the page of the site shows.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import tempfile
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).parents[1] / "docs" / "own_experiment.ipynb"


def run_notebook(notebook: dict[str, Any]) -> dict[str, Any]:
    """Run the code cells in the current folder, save their outputs in them, and return the names they defined."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    names: dict[str, Any] = {"__name__": "__main__"}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(cells, 1):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
        cell["execution_count"] = number
        cell["outputs"] = []
        if text := printed.getvalue():
            cell["outputs"].append({"output_type": "stream", "name": "stdout", "text": text.splitlines(True)})
        for figure in map(plt.figure, plt.get_fignums()):
            drawn = io.BytesIO()
            figure.savefig(drawn, format="png", dpi=100)
            picture = base64.b64encode(drawn.getvalue()).decode()
            cell["outputs"].append({"output_type": "display_data", "metadata": {}, "data": {"image/png": picture}})
        plt.close("all")
    return names


def main() -> None:
    """Run the notebook and save it with its outputs."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        run_notebook(notebook)
    NOTEBOOK.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
