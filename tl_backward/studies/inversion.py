"""How well preimages are sampled, and what they say: ``python -m tl_backward.studies.inversion counting``.

Prints, for a shipped decoder or one in a directory: the share of its samples inside epsilon at every site and position,
beside chance; the same once search has refined them, with its cost; and what the activations know, with intervals.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path

from tqdm.auto import tqdm

from tl_backward._support.types import DataFrame
from tl_backward.inversion.decoder import Decoder, load_from
from tl_backward.inversion.features import Feature, feature_consistency
from tl_backward.inversion.inverting import compare_sites
from tl_backward.inversion.options import Closeness, SearchOptions
from tl_backward.inversion.query import read_query
from tl_backward.inversion.search import search_preimage
from tl_backward.inversion.shipped import RECIPES, Recipe, load
from tl_backward.inversion.tasks import task_of
from tl_backward.inversion.train_shipped import N_QUERIES, N_SAMPLES, measured, report
from tl_backward.text.token_strings import text_frame
from tl_backward.zoo import counting
from tl_backward.zoo import load as load_model

N_REFINED = 200  # samples of a decoder that a search starts from
WALKS = SearchOptions(chains=50, steps=40, thin=5, n_proposals=N_REFINED)  # short: its chains stay near their starts
LEAST, SUM = 100, "234+157="  # the exact table: of which numbers on, and the question

KEPT = ("count", "query letter", "letters")  # what the counting model's findings are about


def refinement_table(decoder: Decoder, recipe: Recipe, *, n_queries: int = 5, seed: int = 0) -> DataFrame:
    """The share inside of a decoder's samples and of a search's that starts from them, and what both cost.

    One row a site and position: means over held-out queries of the shares, and the CPU time of the search (with the
    samples that it starts from) over that of as many verified samples of the decoder.
    """
    queries = list(islice(recipe.others(), 10 * n_queries))[::10]
    places = [(site, position) for site in decoder.sites for position in recipe.positions]
    rows = []
    for site, position in tqdm(places, desc="refinement", delay=1, leave=False):
        for number, text in enumerate(queries):
            how = {"seed": seed + number, "valid": recipe.valid, "show_progress": False}
            query = read_query(decoder.model, text, site, position)
            started = time.process_time()
            own = decoder.preimage(query, n=N_REFINED, **how)
            middle = time.process_time()
            refined = search_preimage(decoder.model, query, site, position, decoder, search_options=WALKS, **how)
            rows.append(
                {"site": str(site), "position": position, "decoder": own.diagnostics.share_inside,
                 "search": refined.diagnostics.share_inside, "own_time": middle - started,
                 "search_time": time.process_time() - middle}
            )  # fmt: skip
    means = text_frame(rows).pivot_table(index=["site", "position"], sort=False).reset_index()
    means["cost"] = means.pop("search_time") / means.pop("own_time")
    return means


def findings_table(decoder: Decoder, *, n_queries: int = 5, steps: int = 400, seed: int = 0) -> DataFrame:
    """The counting model's two findings by search: the count at ':' of layer 1, the letter at itself in layer 0.

    One row a site and query: the shares of texts inside that keep the query's value, with Wilson intervals.
    """
    pool = list(islice(counting.prompts(split="held_out"), 1000))
    features = _features("counting")
    rows = []
    for site, position in ((("resid_mid", 1), -1), (("resid_post", 0), -2)):
        for text in pool[:: len(pool) // n_queries][:n_queries]:
            found = search_preimage(
                decoder.model, text, site, position, decoder, search_options=SearchOptions(steps=steps),
                valid=RECIPES["counting"].valid, seed=seed, show_progress=False,
            )  # fmt: skip
            rows.append(
                {"site": f"{site[0]}, {site[1]}", "position": position, "query": text,
                 "inside": found.diagnostics.share_inside,
                 **{name: str(feature_consistency(found, features[name], name=name).rate) for name in KEPT}}
            )  # fmt: skip
    return text_frame(rows)


def digits_table(recipe: Recipe, *, query: str = SUM, most: int = 400) -> DataFrame:
    """Which digits each site carries at "=", exactly, over all sums of two numbers from 100 to below `most`."""
    model = load_model(recipe.model)
    domain = [f"{left}+{right}=" for left in range(LEAST, most) for right in range(LEAST, most)]
    digits = {name: feature for name, feature in _features("addition").items() if name.startswith(("left ", "right "))}
    frame = compare_sites(
        model, query, list(recipe.sites), inputs=domain, features=digits, exact=True, epsilon=Closeness(match="same")
    ).to_frame()
    return frame.pivot_table(index=["site", "n_inside"], columns="feature", values="rate", sort=False).reset_index()


def main(arguments: Sequence[str] | None = None) -> int:
    """Print every table; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tl_backward.studies.inversion", description="What a shipped decoder reaches, and what it finds."
    )
    parser.add_argument("name", choices=RECIPES, help="the zoo's model")
    parser.add_argument("--decoder", type=Path, metavar="DIR", help="a decoder of that model (default: what ships)")
    parser.add_argument("--queries", type=int, default=N_QUERIES, help=f"that it decodes (default: {N_QUERIES})")
    parser.add_argument("--refined", type=int, default=5, help="queries that search refines (default: 5)")
    parser.add_argument("--most", type=int, default=400, help="addition: numbers below this, to 1000 (default: 400)")
    options = parser.parse_args(arguments)
    if not 235 <= options.most <= 1000:
        parser.error(f"--most is from 235, so that {SUM!r} is among the sums, to 1000, got {options.most}.")
    recipe, folder = RECIPES[options.name], options.decoder
    own = None if folder is None else load_from(folder, load_model(recipe.model), valid=recipe.valid)
    decoder = own or load(options.name)
    print(f"decoder: shares of {N_SAMPLES} samples of {options.queries} queries")
    print(report(measured(decoder, recipe, n_queries=options.queries, n=N_SAMPLES)))
    refined = refinement_table(decoder, recipe, n_queries=options.refined)
    print("\nsearch from the decoder's samples: shares inside, and its cost in times the decoder's")
    _show(refined)
    means = refined[["decoder", "search", "cost"]].mean()
    print(f"mean: decoder {means['decoder']:.3f}, search {means['search']:.3f} at {means['cost']:.1f} times the cost")
    further: dict[str, tuple[str, Callable[[], DataFrame]]] = {
        "counting": ("what is kept, by search", lambda: findings_table(decoder)),
        "addition": ("which digits each site carries at '=', exactly", lambda: digits_table(recipe, most=options.most)),
    }
    if options.name in further:
        title, table = further[options.name]
        print(f"\n{title}")
        _show(table())
    return 0


def _features(name: str) -> Mapping[str, Feature]:
    task = task_of(name)
    assert task is not None
    return task.features


def _show(frame: DataFrame) -> None:
    print(frame.to_string(index=False, float_format=lambda value: f"{value:.3f}"))


if __name__ == "__main__":
    sys.exit(main())
