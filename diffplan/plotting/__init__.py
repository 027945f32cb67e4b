"""Pictures for papers and pages: plans, denoising, episodes, data, learning curves, comparisons.

Every ``plot_*`` returns a ``matplotlib.figure.Figure``, to be written by ``figure.savefig("name.png")`` (or .svg).
Nothing here touches pyplot or leaves matplotlib's settings changed. Colours are safe for colour-blind readers, and
the same as in MuJoCo's pictures.
"""

from diffplan.plotting.beliefs import plot_belief
from diffplan.plotting.denoising import animate_denoising, plot_denoising
from diffplan.plotting.episodes import plot_dataset, plot_filmstrip
from diffplan.plotting.plans import plot_plan, plot_what_if
from diffplan.plotting.results import plot_calibration, plot_comparison, plot_finetuning, plot_learning_curve
from diffplan.plotting.style import save_figure

__all__ = [
    "animate_denoising",
    "plot_belief",
    "plot_calibration",
    "plot_comparison",
    "plot_dataset",
    "plot_denoising",
    "plot_filmstrip",
    "plot_finetuning",
    "plot_learning_curve",
    "plot_plan",
    "plot_what_if",
    "save_figure",
]
