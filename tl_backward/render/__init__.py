"""Safe offline HTML: coloured tokens, attention, tables, figures, and the page that holds them.

Token strings are untrusted. The functions here take them raw, make every character visible and escape them;
nothing is fetched from a network, and nothing is displayed by itself. plotly and the circuitsvis bundle are
loaded only when something is drawn with them.
"""

from tl_backward._support.csv import csv_text
from tl_backward._support.html import Cell, visible_token
from tl_backward.lens.patterns import pattern_names
from tl_backward.render.authors_report import authors_curves, authors_report
from tl_backward.render.circuits import attention, tokens
from tl_backward.render.coherence_figure import coherence_figure
from tl_backward.render.compare_report import compare_report, comparison_curves, comparison_heatmap
from tl_backward.render.difference_report import difference_curves, difference_report
from tl_backward.render.edit_report import comparison_report, edit_report
from tl_backward.render.figure_fragment import figure_fragment
from tl_backward.render.figures import Curve, curves, heatmap, plot_text, plot_token
from tl_backward.render.invert_report import feature_map, hypotheses, invert_report
from tl_backward.render.map_report import map_report, models_map
from tl_backward.render.match_report import match_curves, match_heatmap, match_report
from tl_backward.render.page import Fragment, Page, setup_notebook
from tl_backward.render.params_report import atlas, atlas_page, params_report, words_page
from tl_backward.render.preimage_samples import preimage_samples
from tl_backward.render.report import lens_report
from tl_backward.render.stitching_report import stitching_curves, stitching_heatmap, stitching_report
from tl_backward.render.sweep_report import similarity_heatmap, similarity_report, sweep_curves, sweep_report
from tl_backward.render.tables import data_block, filter_table, lens_table, table
from tl_backward.render.token_pairs import pair_list, pair_picture
from tl_backward.render.watch_report import watch_heatmap, watch_report

__all__ = [
    # reports
    "lens_report",
    "edit_report",
    "comparison_report",
    "sweep_report",
    "similarity_report",
    "params_report",
    "words_page",
    "atlas",
    "atlas_page",
    "match_report",
    "compare_report",
    "stitching_report",
    "map_report",
    "invert_report",
    "watch_report",
    "difference_report",
    "authors_report",
    "pattern_names",
    # pages
    "Fragment",
    "Page",
    "setup_notebook",
    # tokens
    "Cell",
    "attention",
    "lens_table",
    "table",
    "filter_table",
    "pair_list",
    "pair_picture",
    "preimage_samples",
    "hypotheses",
    "feature_map",
    "tokens",
    # plotly
    "Curve",
    "curves",
    "sweep_curves",
    "similarity_heatmap",
    "match_heatmap",
    "match_curves",
    "comparison_heatmap",
    "comparison_curves",
    "stitching_heatmap",
    "stitching_curves",
    "models_map",
    "watch_heatmap",
    "difference_curves",
    "authors_curves",
    "coherence_figure",
    "figure_fragment",
    "heatmap",
    "plot_text",
    "plot_token",
    # text and data
    "csv_text",
    "data_block",
    "visible_token",
]
