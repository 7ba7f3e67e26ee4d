"""All figures of a study, in the order in which they are shown: on the page, in Optuna Dashboard, as pictures."""

from collections.abc import Callable, Mapping

import plotly.graph_objects as go

from seed.findings import StudyRecord
from seed.reporting import figures, search_figures
from seed.reporting.pareto import draw_pareto

FIGURES: Mapping[str, Callable[[StudyRecord], go.Figure]] = {
    "pareto": draw_pareto,
    "layers": figures.draw_layer_map,
    "sensitivity": search_figures.draw_sensitivity,
    "agreement": figures.draw_proxy_against_final,
    "gain": search_figures.draw_gain,
    "progress": search_figures.draw_progress,
    "curves": figures.draw_learning_curves,
    "latency": figures.draw_latency,
}


def draw_gallery(record: StudyRecord) -> dict[str, go.Figure]:
    """Return every figure that has something to show, by its name."""
    drawn = {name: draw(record) for name, draw in FIGURES.items()}
    return {name: figure for name, figure in drawn.items() if figure.data}
