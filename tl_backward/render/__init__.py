"""Safe offline HTML: coloured tokens, attention, tables, figures, and the page that holds them.

Token strings are untrusted. The functions here take them raw, make every character visible and escape them;
nothing is fetched from a network, and nothing is displayed by itself. plotly and the circuitsvis bundle are
loaded only when something is drawn with them.
"""

from typing import TYPE_CHECKING

from tl_backward._support.submodules import offer

if TYPE_CHECKING:
    from tl_backward._support.csv import csv_text as csv_text
    from tl_backward._support.html import Cell as Cell
    from tl_backward._support.html import visible_token as visible_token
    from tl_backward.lens.patterns import pattern_names as pattern_names
    from tl_backward.render.authors_page import authors_curves as authors_curves
    from tl_backward.render.authors_page import authors_report as authors_report
    from tl_backward.render.circuits import attention as attention
    from tl_backward.render.circuits import tokens as tokens
    from tl_backward.render.coherence import coherence_figure as coherence_figure
    from tl_backward.render.compare_page import compare_report as compare_report
    from tl_backward.render.compare_page import comparison_curves as comparison_curves
    from tl_backward.render.compare_page import comparison_heatmap as comparison_heatmap
    from tl_backward.render.difference_page import difference_curves as difference_curves
    from tl_backward.render.difference_page import difference_report as difference_report
    from tl_backward.render.edit_page import comparison_report as comparison_report
    from tl_backward.render.edit_page import edit_report as edit_report
    from tl_backward.render.figures import Curve as Curve
    from tl_backward.render.figures import curves as curves
    from tl_backward.render.figures import heatmap as heatmap
    from tl_backward.render.figures import plot_text as plot_text
    from tl_backward.render.figures import plot_token as plot_token
    from tl_backward.render.fragments import figure_fragment as figure_fragment
    from tl_backward.render.invert_page import feature_map as feature_map
    from tl_backward.render.invert_page import hypotheses as hypotheses
    from tl_backward.render.invert_page import invert_report as invert_report
    from tl_backward.render.lens_page import lens_report as lens_report
    from tl_backward.render.map_page import map_report as map_report
    from tl_backward.render.map_page import models_map as models_map
    from tl_backward.render.match_page import match_curves as match_curves
    from tl_backward.render.match_page import match_heatmap as match_heatmap
    from tl_backward.render.match_page import match_report as match_report
    from tl_backward.render.page import Fragment as Fragment
    from tl_backward.render.page import Page as Page
    from tl_backward.render.page import setup_notebook as setup_notebook
    from tl_backward.render.params_page import atlas as atlas
    from tl_backward.render.params_page import atlas_page as atlas_page
    from tl_backward.render.params_page import params_report as params_report
    from tl_backward.render.params_page import words_page as words_page
    from tl_backward.render.samples import preimage_samples as preimage_samples
    from tl_backward.render.stitching_page import stitching_curves as stitching_curves
    from tl_backward.render.stitching_page import stitching_heatmap as stitching_heatmap
    from tl_backward.render.stitching_page import stitching_report as stitching_report
    from tl_backward.render.sweep_page import similarity_heatmap as similarity_heatmap
    from tl_backward.render.sweep_page import similarity_report as similarity_report
    from tl_backward.render.sweep_page import sweep_curves as sweep_curves
    from tl_backward.render.sweep_page import sweep_report as sweep_report
    from tl_backward.render.tables import data_block as data_block
    from tl_backward.render.tables import filter_table as filter_table
    from tl_backward.render.tables import lens_table as lens_table
    from tl_backward.render.tables import table as table
    from tl_backward.render.token_pairs import pair_list as pair_list
    from tl_backward.render.token_pairs import pair_picture as pair_picture
    from tl_backward.render.watch_page import watch_heatmap as watch_heatmap
    from tl_backward.render.watch_page import watch_report as watch_report

_FROM = {
    # reports
    "lens_report": "render.lens_page",
    "edit_report": "render.edit_page",
    "comparison_report": "render.edit_page",
    "sweep_report": "render.sweep_page",
    "similarity_report": "render.sweep_page",
    "params_report": "render.params_page",
    "words_page": "render.params_page",
    "atlas": "render.params_page",
    "atlas_page": "render.params_page",
    "match_report": "render.match_page",
    "compare_report": "render.compare_page",
    "stitching_report": "render.stitching_page",
    "map_report": "render.map_page",
    "invert_report": "render.invert_page",
    "watch_report": "render.watch_page",
    "difference_report": "render.difference_page",
    "authors_report": "render.authors_page",
    "pattern_names": "lens.patterns",
    # pages
    "Fragment": "render.page",
    "Page": "render.page",
    "setup_notebook": "render.page",
    # tokens
    "Cell": "_support.html",
    "attention": "render.circuits",
    "lens_table": "render.tables",
    "table": "render.tables",
    "filter_table": "render.tables",
    "pair_list": "render.token_pairs",
    "pair_picture": "render.token_pairs",
    "preimage_samples": "render.samples",
    "hypotheses": "render.invert_page",
    "feature_map": "render.invert_page",
    "tokens": "render.circuits",
    # plotly
    "Curve": "render.figures",
    "curves": "render.figures",
    "sweep_curves": "render.sweep_page",
    "similarity_heatmap": "render.sweep_page",
    "match_heatmap": "render.match_page",
    "match_curves": "render.match_page",
    "comparison_heatmap": "render.compare_page",
    "comparison_curves": "render.compare_page",
    "stitching_heatmap": "render.stitching_page",
    "stitching_curves": "render.stitching_page",
    "models_map": "render.map_page",
    "watch_heatmap": "render.watch_page",
    "difference_curves": "render.difference_page",
    "authors_curves": "render.authors_page",
    "coherence_figure": "render.coherence",
    "figure_fragment": "render.fragments",
    "heatmap": "render.figures",
    "plot_text": "render.figures",
    "plot_token": "render.figures",
    # text and data
    "csv_text": "_support.csv",
    "data_block": "render.tables",
    "visible_token": "_support.html",
}
"""Each name and the module it is taken from when it is first used: a page of one kind loads nothing of the others."""

offer(__name__, _FROM)


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
