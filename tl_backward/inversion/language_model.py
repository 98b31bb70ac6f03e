"""InversionView of a language model: python -m tl_backward.inversion.language_model --model DIR --out DIR.

The paper's two language-model cases, IOI and factual recall, with prompts of `language_cases`, and with --data a third:
the beginnings of any texts. At every site and position: retrieval from a pool of prompts, a search that starts from it,
and with --decoder a trained decoder's samples, each read by the same features. On GPT-2 small the sites of the IOI case
are the heads of its known circuit (Wang et al. 2023); elsewhere they are the residual stream at six depths, or what
--site says:

    python -m tl_backward.inversion.language_model --model gpt2 --case ioi --device cuda --out ioi
    python -m tl_backward.inversion.language_model --model gpt2-xl --case facts --site resid_post,20 --out facts

Train a decoder for --decoder with `inversion.train(model, sites, case.draw(...), ...)`. Written: figures.json and
texts.csv. A page of the same is made by `tl-backward invert --model ... --data ...`.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import process_time

from tl_backward._support.csv import csv_lines, csv_text
from tl_backward._support.html import visible_text
from tl_backward._support.storage import replacing
from tl_backward._support.types import TransformerLensModel
from tl_backward.inversion.decoder import Decoder, load_from
from tl_backward.inversion.features import common_features
from tl_backward.inversion.language_cases import Case, factual_recall, ioi
from tl_backward.inversion.options import SearchOptions
from tl_backward.inversion.positions import Position
from tl_backward.inversion.preimage import Preimage, pool_preimage
from tl_backward.inversion.query import read_query
from tl_backward.inversion.search import search_preimage
from tl_backward.inversion.tasks import task_of_texts
from tl_backward.model.loading import load
from tl_backward.model.place import PlaceLike, resolve_place
from tl_backward.text.encoded import Encoded, encode, encode_starts
from tl_backward.text.files import read_data

_DEPTHS = 6
_LEAST_ACCEPTED = 0.01  # of a search; below, its chains have hardly moved, and their shares say nothing
_GPT2_SMALL = (12, 12, 768)  # layers, heads, width
_OPTIONS = {
    "--model": {"required": True, "help": "as in `tl-backward lens`"},
    "--kind": {"choices": ("hooked", "bridge")},
    "--device": {"default": "cpu"},
    "--case": {"action": "append", "choices": ("ioi", "facts", "texts"), "help": "may be repeated (default: all)"},
    "--data": {"help": "texts of the third case: .txt, .json or .jsonl"},
    "--text-key": {"default": "text", "help": "where a text is in objects of the file"},
    "--max-tokens": {"type": int, "default": 24, "help": "of a text's beginning (default: 24)"},
    "--site": {"action": "append", "help": "resid_post,3 or result,9,6; may be repeated"},
    "--decoder": {"help": "a folder that inversion.train wrote for this model"},
    "--out": {"required": True, "help": "a new folder"},
    "--epsilon": {"type": float, "default": 0.1},
    "--n": {"type": int, "default": 200, "help": "texts taken of a pool or drawn from a decoder (default: 200)"},
    "--pool": {"type": int, "default": 2000, "help": "prompts drawn (default: 2000)"},
    "--chains": {"type": int, "default": 32, "help": "of a search (default: 32)"},
    "--steps": {"type": int, "default": 200, "help": "of each chain; 0 leaves the search out (default: 200)"},
    "--seed": {"type": int, "default": 0},
}
COLUMNS = (
    "case",
    "site",
    "position",
    "method",
    "n",
    "inside",
    "distinct",
    "chance",
    "accepted",
    "ESS",
    "CPU s",
    "kept",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the cases that `argv` names (default: the process's own) and return an exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, options in _OPTIONS.items():
        parser.add_argument(name, **options)
    arguments = parser.parse_args(argv)
    try:
        run(arguments)
    except (ValueError, TypeError, IndexError, OSError) as error:
        print(visible_text(" ".join(str(error).split())), file=sys.stderr)
        return 1
    return 0


def run(arguments: argparse.Namespace) -> list[dict[str, object]]:
    """Every case at its sites and positions; prints rows as they are found, and writes them.

    Raises:
        ValueError: nothing to do, a folder that is not empty, or what `tl_backward.load` and `preimage_of` refuse.
    """
    out = Path(arguments.out)
    if out.exists() and any(out.iterdir()):
        raise ValueError(
            f"Expected --out to be a new or empty folder, got {str(out)!r}, which holds files; choose another."
        )
    model = load(arguments.model, kind=arguments.kind, device=arguments.device)
    arguments.site = [resolve_place(model, site) for site in arguments.site or ()]
    decoder = None if arguments.decoder is None else load_from(arguments.decoder, model)
    names = arguments.case or ["ioi", "facts", *(["texts"] if arguments.data else [])]
    cases = [_case(name, model, arguments) for name in names]
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    with (out / "texts.csv").open("w", newline="", encoding="utf-8") as file:
        file.write(csv_text(["case", "site", "position", "method", "text", "distance", "inside", "weight"], []))
        for case in cases:
            print(f"\n{case.name}: {case.query!r}\n" + "  ".join(COLUMNS[1:]))
            for where, found, cpu_seconds in _preimages(case, model, decoder, arguments):
                row = _row(case, where, found, arguments, cpu_seconds)
                rows.append(row)
                print(visible_text("  ".join(_shown(row[name]) for name in COLUMNS[1:])), flush=True)
                head = [case.name, str(found.site), where, found.method]
                file.write(
                    csv_lines([*head, *values[:2], *values[3:]] for values in found.to_frame().itertuples(index=False))
                )
    with replacing(out / "figures.json") as partial:
        partial.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return rows


def sites_of(case: Case, model: TransformerLensModel) -> dict[str, list[PlaceLike]]:
    """Position -> sites: the known circuit's heads in GPT-2 small, else the residual stream at six depths."""
    cfg = model.cfg
    if case.heads and (cfg.n_layers, cfg.n_heads, cfg.d_model) == _GPT2_SMALL:
        return {position: [("result", layer, head) for layer, head in heads] for position, heads in case.heads.items()}
    last = cfg.n_layers - 1
    depths = sorted({round(i * last / max(1, _DEPTHS - 1)) for i in range(_DEPTHS)})
    return {position: [("resid_post", layer) for layer in depths] for position in case.positions}


def _case(name: str, model: TransformerLensModel, arguments: argparse.Namespace) -> Case:
    if name != "texts":
        return ioi() if name == "ioi" else factual_recall()
    if arguments.data is None:
        raise ValueError("Expected --data FILE with --case texts, got none; give a file of texts.")
    cut = encode_starts(model, read_data(Path(arguments.data), arguments.text_key), arguments.max_tokens)
    query, *others = cut.texts
    task = task_of_texts(others)
    return Case("texts", task.draw, task.features, query=query, positions={"END": -1}, heads={})


def _preimages(
    case: Case, model: TransformerLensModel, decoder: Decoder | None, arguments: argparse.Namespace
) -> Iterator[tuple[str, Preimage, float]]:
    """The position's name, the preimage and CPU seconds, for each position, site and method."""
    pool = encode(model, case.draw(arguments.pool, arguments.seed))
    for name, sites in sites_of(case, model).items():
        chosen: list[PlaceLike] = arguments.site or sites
        for site in chosen:
            for way in _ways(case, model, decoder, pool, site, case.positions[name], arguments):
                start = process_time()
                found = way()
                yield name, found, process_time() - start


def _ways(
    case: Case,
    model: TransformerLensModel,
    decoder: Decoder | None,
    pool: Encoded,
    site: PlaceLike,
    position: Position,
    arguments: argparse.Namespace,
) -> Iterator[Callable[[], Preimage]]:
    query = read_query(model, case.query, site, position)
    epsilon, valid, n, seed = arguments.epsilon, case.valid, arguments.n, arguments.seed
    yield lambda: pool_preimage(
        model, query, site, position, pool, n=n, epsilon=epsilon, valid=valid, show_progress=False
    )
    if arguments.steps:
        walks = SearchOptions(arguments.chains, arguments.steps, token_edits=("substitute", "swap", "relabel"))
        yield lambda: search_preimage(
            model, query, site, position, pool, search_options=walks, valid=valid, epsilon=epsilon, seed=seed,
            show_progress=False,
        )  # fmt: skip
    if decoder is not None and resolve_place(model, site) in decoder.sites:
        yield lambda: decoder.preimage(
            query, n=n, prior=pool, seed=seed, epsilon=epsilon, valid=valid, show_progress=False
        )


def _row(
    case: Case, where: str, found: Preimage, arguments: argparse.Namespace, cpu_seconds: float
) -> dict[str, object]:
    features = common_features(found, case.features, prior=case.draw(arguments.pool, arguments.seed))
    kept = {
        row.feature: (round(row.rate.value, 3), round(row.prior.value, 3))
        for row in features.rows
        if row.prior is not None and row.rate.low > row.prior.high
    }
    d = found.diagnostics
    stuck = d.acceptance is not None and d.acceptance < _LEAST_ACCEPTED
    return {
        "case": case.name,
        "site": str(found.site),
        "position": where,
        "method": found.method,
        "n": len(found),
        "inside": int(found.inside.sum()),
        "distinct": d.distinct,
        "chance": d.chance,
        "accepted": d.acceptance,
        "ESS": d.effective_sample_size,
        "CPU s": cpu_seconds,
        "kept": "(the chains hardly moved)" if stuck else kept,
    }


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{name} {rate:g} ({prior:g})" for name, (rate, prior) in value.items()) or "-"
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
