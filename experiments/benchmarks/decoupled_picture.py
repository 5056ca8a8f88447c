"""Draws what `decoupled.py --json` printed: accuracy over depth, for every signal.

python experiments/benchmarks/decoupled.py --json > decoupled.txt
python experiments/benchmarks/decoupled_picture.py decoupled.txt --out docs/images/decoupled.png
"""

import dataclasses
import json
import statistics
from pathlib import Path

import tyro
from matplotlib.figure import Figure
from tyro.conf import Positional


@dataclasses.dataclass(frozen=True)
class Options:
    """What can be chosen."""

    files: Positional[tuple[Path, ...]]
    """Each with one JSON object in its last line."""
    out: Path = Path("decoupled.png")
    """The picture."""


def main(options: Options) -> None:
    rows = [row for file in options.files for row in json.loads(file.read_text().splitlines()[-1])["rows"]]
    rows.sort(key=lambda row: row["depth"])
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(row["signal"] for row in rows):
        mine = [row for row in rows if row["signal"] == name]
        depths, means = [row["depth"] for row in mine], [statistics.mean(row["accuracy"]) for row in mine]
        line = axes.plot(depths, means, marker="o", markersize=4, linewidth=1.3, label=name)[0]
        lows, highs = [min(row["accuracy"]) for row in mine], [max(row["accuracy"]) for row in mine]
        axes.fill_between(depths, lows, highs, color=line.get_color(), alpha=0.12, linewidth=0)
    axes.set_xticks(sorted({row["depth"] for row in rows}))
    axes.set_xlabel("hidden layers, each a module")
    axes.set_ylabel("accuracy on unseen images")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(options.out, dpi=110)


if __name__ == "__main__":
    main(tyro.cli(Options))
