"""Where along the network a feature is kept: sites down, positions across."""

import math

from tl_backward._support.html import Cell
from tl_backward.inversion import Place, SiteComparison
from tl_backward.render.page import Fragment
from tl_backward.render.tables import lens_table
from tl_backward.text.token_strings import token_string

LABEL = "share of the preimage that keeps it"


def feature_map(comparison: SiteComparison, feature: str) -> Fragment:
    """Make a heat map of the share of each preimage that keeps the query's value of one feature.

    Sites are rows, in the order they were compared; the query's tokens are columns. On hover, the interval, the prior's
    share and how many inputs the share is of; a cell without any input within epsilon stays white.

    Raises:
        KeyError: a feature that was not compared.

    Example:
        >>> counting, pool = tlb.zoo.load("counting"), list(tlb.zoo.counting.prompts(50))
        >>> p = tlb.inversion.pool_preimage(counting, pool[0], ("resid_mid", 1), -1, pool, show_progress=False)
        >>> features = {"letter": lambda text: text[-2], "length": len}
        >>> c = tlb.inversion.compare_sites(counting, pool[0], [("resid_mid", 1)], inputs=pool, features=features)
        >>> 'letter' in tlb.render.feature_map(c, 'letter').html
        True
    """
    found = {
        (p.site, p.position): (p, table[feature])
        for p, table in zip(comparison.preimages, comparison.features, strict=True)
    }
    sites = list(dict.fromkeys(site for site, _ in found))
    positions = sorted({position for _, position in found})
    query = comparison.preimages[0].query
    tokenizer = comparison.preimages[0].inputs.tokenizer
    columns = [token_string(tokenizer, int(query.tokens[position])) for position in positions]
    cells = []
    for site in sites:
        row = []
        for position in positions:
            preimage, kept = found[site, position]
            n = f"{int(preimage.inside.sum())} of {len(preimage)} inputs within {preimage.epsilon:g}"
            where = f"{site}, position {position}"
            if math.isnan(kept.rate.value):
                row.append(Cell("\u2013", title=(where, n)))
                continue
            prior = "" if kept.prior is None else f"prior {kept.prior.value:.4g}"
            row.append(
                Cell(f"{kept.rate.value:.2f}", title=(where, f"share {kept.rate}", prior, n), value=kept.rate.value)
            )
        cells.append(row)
    value = comparison.features[0][feature].query_value
    caption = f"{feature} = {value}"
    return lens_table(
        [site_label(site) for site in sites],
        columns,
        cells,
        value_label=LABEL,
        caption=caption,
        corner="site",
        bound=1.0,
    )


def site_label(site: Place) -> str:
    """A site's name as short as a table's header wants it: "L1 resid_mid", "L0 result[3]"."""
    short = site.name.rpartition(".")[2].removeprefix("hook_")
    head = "" if site.head is None else f"[{site.head}]"
    return f"{short}{head}" if site.layer is None else f"L{site.layer} {short}{head}"
