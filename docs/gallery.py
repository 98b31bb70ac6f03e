"""Make the gallery: a picture of every kind of page (Chromium), and the page of the documentation that holds them.

`make gallery` runs it; with `--text` only docs/gallery.md is written anew, with the pictures that are there.
"""

import argparse
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

import tl_backward as tlb

DOCS = Path(__file__).parent
PICTURES = DOCS / "gallery"
PROMPT, TARGET, SUBJECT = "Anna Berg lives in the city of", " Oslo", "Anna Berg"
QUIET = {"show_progress": False}


@dataclass(frozen=True)
class Entry:
    """One kind of page."""

    name: str
    title: str
    says: str
    call: str
    page: Callable[[], "tlb.render.Page"]


def _lens() -> "tlb.render.Page":
    model = tlb.load("facts")
    names = tlb.render.pattern_names(model)
    lens = tlb.backward_lens(model, PROMPT, TARGET, subject=SUBJECT, control="random_init", names_filter=names)
    return tlb.render.lens_report(lens, model)


def _sweep() -> "tlb.render.Page":
    return tlb.render.sweep_report(tlb.sweep(tlb.load("facts"), tlb.zoo.edit_cases("test")[:40], **QUIET))


def _similarity() -> "tlb.render.Page":
    found = tlb.gradient_similarity(tlb.load("facts"), tlb.zoo.edit_cases("test")[:20], metric="cosine", **QUIET)
    return tlb.render.similarity_report(found)


def _edits() -> "tlb.render.Page":
    methods = tlb.editing.edit_methods(layer=2, scale=0.75, lr=0.001)
    found = tlb.compare_edits(tlb.load("facts"), tlb.zoo.edit_cases("test")[:20], methods, n_tokens=0, **QUIET)
    return tlb.render.comparison_report(found)


def _match() -> "tlb.render.Page":
    model = tlb.load("facts")
    return tlb.render.match_report(tlb.alignment.match_parameters(model, model, "W_out", **QUIET))


def _texts() -> list[str]:
    return [case.prompt for case in tlb.zoo.edit_cases("test")[:60]]


def _compare() -> "tlb.render.Page":
    model = tlb.load("facts")
    measures = ["cka_debiased", "procrustes"]
    options = tlb.dissimilarity.RunOptions(control="random_init")
    found = tlb.dissimilarity.compare(model, model, _texts(), measures=measures, run_options=options, **QUIET)
    return tlb.render.compare_report(found)


def _map() -> "tlb.render.Page":
    models = {"facts": tlb.load("facts"), "again": tlb.load("facts")}
    return tlb.render.map_report(tlb.dissimilarity.model_distances(models, _texts(), **QUIET))


def _stitching() -> "tlb.render.Page":
    model = tlb.load("facts")
    return tlb.render.stitching_report(
        tlb.dissimilarity.stitching_grid(model, model, _texts(), **QUIET), names=("facts", "again")
    )


def _training() -> "tuple[tlb.training.WatchResult, tlb.training.Difference]":
    """A fine-tuning on 64 facts, watched, beside one on their answers in another order."""
    cases, before = tlb.zoo.edit_cases("test")[:64], tlb.load("facts")
    models, watched = [], []
    for answers in ([case.target for case in cases], [case.target for case in cases[::-1]]):
        model = tlb.load("facts")
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
        tokens = model.to_tokens([case.prompt + answer for case, answer in zip(cases, answers, strict=True)])
        with tlb.training.watch(model, optimizer=optimizer) as w:
            for step in range(64):
                batch = tokens[step % 8 :: 8]
                losses = model(batch, return_type="loss", loss_per_token=True)
                losses[batch[:, 1:] != model.tokenizer.pad_token_id].mean().backward()
                optimizer.step()
                optimizer.zero_grad()
        models.append(model)
        watched.append(w.result())
    return watched[0], tlb.training.difference(before, models[0], control=models[1])


def _authors() -> "tlb.render.Page":
    cases = tlb.zoo.edit_cases("test")[:64]
    found = tlb.training.who_wrote(tlb.load("facts"), cases[11].prompt, cases[11].target, cases, **QUIET)
    return tlb.render.authors_report(found, name="facts")


def _invert() -> "tlb.render.Page":
    model, task = tlb.load("counting"), tlb.inversion.task_of("counting")
    found = tlb.inversion.invert(model, "vvzccvczvvvzvcvc|v:", [("resid_mid", 1)], [-1], task, **QUIET)
    return tlb.render.invert_report(found.readings)


ENTRIES = (
    Entry("lens", "The Backward Lens", "what one step on a prompt would imprint and shift in each layer, in words",
          'tl-backward lens --model facts --prompt "Anna Berg lives in the city of" --target " Oslo"', _lens),
    Entry("sweep", "A sweep", "norms, shares and ranks over many prompts, with intervals, beside an untrained control",
          "tlb.sweep(model, cases).page()", _sweep),
    Entry("similarity", "Similar gradients", "which examples would write the same thing into the weights",
          "tlb.render.similarity_report(tlb.gradient_similarity(model, cases))", _similarity),
    Entry("edits", "Edits compared", "what each way to edit a fact reaches, and what else it changes",
          "tl-backward edits --model facts", _edits),
    Entry("params", "A weight in words", "every neuron's tokens, the most coherent first, beside Gaussian vectors",
          "tl-backward params --model facts --weight W_out --layer 2",
          lambda: tlb.render.params_report(tlb.load("facts"), "W_out", 2)),
    Entry("atlas", "All weights in words", "an atlas of every matrix of a model",
          "tl-backward params --model facts", lambda: tlb.render.atlas(tlb.load("facts"))),
    Entry("match", "Parameters matched", "which vectors of two models say the same words, beside a rotation",
          'tlb.render.match_report(tlb.alignment.match_parameters(a, b, "W_out"))', _match),
    Entry("compare", "Two models compared", "every layer of one against every layer of the other, by several measures",
          "tl-backward compare --model-a A --model-b B --data texts.json --control", _compare),
    Entry("stitching", "Models stitched", "what it costs to run one model's first layers and another's last ones",
          "tlb.render.stitching_report(tlb.dissimilarity.stitching_grid(a, b, texts))", _stitching),
    Entry("map", "Many models on a map", "layers of models placed by their distances",
          'tlb.render.map_report(tlb.dissimilarity.model_distances({"a": a, "b": b}, texts))', _map),
    Entry("watch", "What a training wrote", "where it wrote, in words before and after, and who contributed most",
          "tlb.render.watch_report(result)  # of tlb.training.watch", lambda: _training()[0].page(name="facts")),
    Entry("difference", "What really changed", "each change in directions and words, beside a control and noise",
          "tlb.render.difference_report(tlb.training.difference(before, after, control=other))",
          lambda: _training()[1].page(name="facts")),
    Entry("authors", "Who wrote it", "the examples that would most write an answer, beside random queries",
          "tlb.render.authors_report(tlb.training.who_wrote(model, prompt, target, cases))", _authors),
    Entry("invert", "What an activation knows", "what texts with nearly the same activation have in common",
          'tl-backward invert --model counting --prompt "vvzccvczvvvzvcvc|v:"', _invert),
)  # fmt: skip


def text() -> str:
    """The documentation's page."""
    intro = "One picture of every kind of page. Each is one file that needs no network; `make gallery` makes them."
    parts = [f"# Gallery\n\n{intro}\n"]
    for entry in ENTRIES:
        picture = f"![{entry.title}: {entry.says}](gallery/{entry.name}.png)\n\n" if _picture(entry).exists() else ""
        parts.append(f"## {entry.title}\n\nIt says {entry.says}.\n\n{picture}```\n{entry.call}\n```\n")
    return "\n".join(parts)


def _picture(entry: Entry) -> Path:
    return PICTURES / f"{entry.name}.png"


def photograph(page: Path, picture: Path, width: int = 1200, height: int = 900) -> None:
    """Save a page's first screen as Chromium paints it."""
    chromium = shutil.which("chromium")
    if chromium is None:
        raise RuntimeError("Expected chromium on the PATH, which paints the pages, got none; install it.")
    options = ["--headless=new", "--hide-scrollbars", "--no-sandbox", "--virtual-time-budget=10000"]
    size, to = f"--window-size={width},{height}", f"--screenshot={picture}"
    subprocess.run([chromium, *options, size, to, page.as_uri()], check=True, capture_output=True)


def main() -> None:
    """Make pictures and text."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", action="store_true", help="write the page alone")
    parser.add_argument("names", nargs="*", help="of pictures to make; all by default")
    arguments = parser.parse_args()
    if not arguments.text:
        PICTURES.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            for entry in ENTRIES:
                if not arguments.names or entry.name in arguments.names:
                    print(f"{entry.name} ...", flush=True)
                    page = entry.page().save(Path(folder) / f"{entry.name}.html")
                    photograph(page, _picture(entry))
                    if entry.name == "lens":  # the README's
                        photograph(page, DOCS / "demo-report.png", height=1000)
    (DOCS / "gallery.md").write_text(text(), encoding="utf-8")


if __name__ == "__main__":
    main()
