"""Draws what `blackbox.py --part coco --json` printed: the share of targets reached over the evaluations spent.

python experiments/benchmarks/blackbox.py --part coco --json > coco.txt
python experiments/benchmarks/blackbox_picture.py coco.txt --out docs/images/coco.png
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import tyro
from blackbox_functions import moments
from matplotlib.figure import Figure
from tyro.conf import Positional

COLOURS = {"nondiff": "tab:red", "pycma": "tab:blue", "cmaes": "tab:green", "evosax": "tab:orange"}


@dataclasses.dataclass(frozen=True)
class Options:
    """What can be chosen."""

    files: Positional[tuple[Path, ...]]
    """Each with one JSON object in its last line."""
    out: Path = Path("coco.png")
    """The picture."""


def main(options: Options) -> None:
    rows = [row for file in options.files for row in json.loads(file.read_text().splitlines()[-1])["rows"]]
    rows = [row for row in rows if row["group"] == "all"]
    cells = list(dict.fromkeys((row["suite"], row["dim"]) for row in rows))
    figure = Figure(figsize=(4 * len(cells), 3.4), layout="constrained")
    for axes, cell in zip(figure.subplots(1, len(cells), squeeze=False)[0], cells, strict=True):
        draw(axes, [row for row in rows if (row["suite"], row["dim"]) == cell])
    figure.savefig(options.out, dpi=110)


def draw(axes: Any, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        spent = [moment / row["dim"] for moment in moments(row["budget"])]
        label = f"{row['library']} ({row['area']:.3f})"
        axes.plot(spent, row["curve"], label=label, color=COLOURS.get(row["library"]), linewidth=1.3)
    axes.set_xscale("log")
    axes.set_ylim(0, 1)
    axes.set_xlabel("evaluations / dimension")
    axes.set_ylabel("share of targets reached")
    axes.set_title(f"{rows[0]['suite']}, {rows[0]['dim']} dimensions", fontsize="medium")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small", loc="upper left")


if __name__ == "__main__":
    main(tyro.cli(Options))
