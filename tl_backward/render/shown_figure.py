"""plotly figures that keep a picture of themselves in a saved notebook."""

import functools
import webbrowser
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tl_backward.render.picture import drawable
from tl_backward.render.still import picture_output

if TYPE_CHECKING:
    import plotly.graph_objects

NO_BROWSER = "No browser was found to show the figure in: figure.write_html('figure.html') writes it as a page."
"""What a terminal says in place of plotly's traceback."""


def shown(drawing: Mapping[str, Any]) -> "plotly.graph_objects.Figure":
    """A plotly figure of plotly's JSON; a notebook shows it by plotly, and saves its static picture beside.

    Exporters, previews and PDF have no plotly; they take the picture (image/svg+xml). There is no text/html
    beside it, which they would prefer and, where they sanitise it, strip of every picture.
    """
    return _figure_class()(dict(drawing))


@functools.cache
def _figure_class() -> "type[plotly.graph_objects.Figure]":
    import plotly.graph_objects

    class Figure(plotly.graph_objects.Figure):
        """A plotly figure whose notebook output holds its static picture too."""

        def _ipython_display_(self) -> None:
            import plotly.io
            from IPython.display import display

            json = self.to_plotly_json()
            # Another renderer than the notebook's was chosen, or this is Colab: plotly knows how to show itself there.
            if "plotly_mimetype" not in str(plotly.io.renderers.default).split("+") or not drawable(json):
                try:
                    super()._ipython_display_()
                except webbrowser.Error:
                    print(NO_BROWSER)
                return
            bundle = plotly.io.renderers["plotly_mimetype"].to_mimebundle(self.to_dict())
            display(bundle | picture_output(json), raw=True)

    return Figure
