"""What a search looked like, as people know it from pycma: losses, sigma, the ratio of the axes, step by step; and the
residuals of ADMM beside their tolerances."""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from nondiff.run.fit import Result

PANELS = (
    ("loss", ("loss", "best", "best_ever")),
    ("sigma", ("sigma",)),
    ("axis ratio", ("axis_ratio",)),
    ("residual", ("primal", "primal_tolerance", "dual", "dual_tolerance")),
)
"""Of each panel the name, and the metrics that it shows, also those of a part (`search/sigma`)."""


def plot(result: "Result") -> Any:
    """One panel below the other; those that no row has are left out."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("`Result.plot` needs matplotlib: pip install matplotlib") from None
    if not result.history:
        raise ValueError("`Result.plot`: the history has no rows; no step was done.")
    names = list(dict.fromkeys(name for row in result.history for name in row))
    panels = [(title, [n for n in names if n.rsplit("/", 1)[-1] in shown]) for title, shown in PANELS]
    panels = [(title, found) for title, found in panels if found]
    figure = Figure(figsize=(7, 1 + 2.2 * len(panels)), layout="constrained")
    for axes, (title, found) in zip(np.atleast_1d(figure.subplots(len(panels), sharex=True)), panels, strict=True):
        lowest = np.inf
        for name in found:
            steps, values = np.array([(row["step"], row[name]) for row in result.history if name in row]).T
            axes.plot(steps, values, label=name, linewidth=1.2)
            lowest = min(lowest, np.min(values, where=np.isfinite(values), initial=np.inf))
        axes.set_yscale("log" if lowest > 0 else "symlog" if title == "loss" else "linear")
        axes.set_ylabel(title)
        axes.grid(alpha=0.3)
        if len(found) > 1:
            axes.legend(frameon=False)
    axes.set_xlabel("step")
    figure.suptitle(f"{result.steps} steps: {result.reason}", fontsize="medium", wrap=True)
    return figure
