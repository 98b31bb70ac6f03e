"""The table in words: one line a row for the terminal, and docs/architectures.md."""

import re

from tl_backward.weights import names

LISTED = 0.001
"""Share of what gets a gradient beyond which a listed weight counts."""


def _share(value: float) -> str:
    percent = 100 * value
    return "0" if percent == 0 else f"{percent:.0f}" if percent >= 10 else f"{percent:.2g}"


def _passes(result: dict) -> dict:
    return result.get("passes") or {}


def coverage(result: dict) -> str:
    """captured / listed / silent, in %, of the pass that covers least."""
    found = _passes(result).values()
    if not found:
        return ""
    least = max(found, key=lambda p: (p["silent"], p["listed"]))
    silent = _share(least["silent"])
    return f"{_share(least['captured'])} / {_share(least['listed'])} / {silent if silent == '0' else f'**{silent}**'}"


def whole(result: dict) -> str:
    """How much of it has no factors, in %."""
    found = _passes(result).values()
    return _share(max(p["whole"] for p in found)) if found else ""


def error(result: dict) -> str:
    """The worst error of all passes."""
    found = _passes(result).values()
    if not found:
        return ""
    wrong = {name: value for p in found for name, value in p["wrong"].items()}
    if wrong:
        name = max(wrong, key=lambda key: wrong[key])
        return f"**WRONG {wrong[name]:.0e}** ({name})"
    exact = max(p["exact"] if p["rounded"] else p["worst"] for p in found)
    rounded = [p["worst"] for p in found if p["rounded"]]
    single = max(p["single"] for p in found)
    notes = [f"{max(rounded):.0e} as transformers rounds"] if rounded else []
    notes += [f"{single:.0e} in float32"] if single else []
    return (f"{exact:.0e}" if exact else "0") + (f" ({', '.join(notes)})" if notes else "")


def line(version: str, result: dict) -> str:
    """A row for the terminal."""
    if not result.get("runs"):
        why = (
            result["boots"] if result["boots"] != "yes" else "; ".join(f"{k}: {v}" for k, v in result["failed"].items())
        )
        return f"{version} {result['name']:<62} does not run: {why[:150]}"
    parts = [coverage(result), error(result)]
    parts += [f"{key} {result[key][:90]}" for key in ("lens", "readout", "control", "points") if result.get(key)]
    parts += [f"{name} {what[:60]}" for name, what in (result.get("uses") or {}).items() if what != "works"]
    parts += [
        f"{name}: {why}" for name, why in {**(result.get("failed") or {}), **(result.get("errors") or {})}.items()
    ]
    return f"{version} {result['name']:<62} " + " | ".join(parts) + f" ({result.get('seconds', 0):.1f} s)"


def counts(world: dict) -> dict:
    """How many names are silent, wrong, listed beyond LISTED, or raise."""
    by_name: dict[str, list[dict]] = {}
    for result in world["results"]:
        by_name.setdefault(result["architecture"], []).append(result)
    runs = {name for name, results in by_name.items() if any(result["runs"] for result in results)}
    every = lambda test: {  # noqa: E731
        name for name, results in by_name.items() if any(test(p) for r in results for p in _passes(r).values())
    }
    silent, wrong = every(lambda p: p["silent"] > 0), every(lambda p: bool(p["wrong"]))
    listed = every(lambda p: p["listed"] > LISTED)
    raised = {name for name, results in by_name.items() if any(result.get("errors") for result in results)}
    whole = runs - silent - wrong - raised - listed
    n = len(world["registered"])
    text = (
        f"{n} names, {len(runs)} of which build offline and run; of these {len(whole)} whole, {len(silent)} silent, "
        f"{len(wrong)} wrong, {len(raised)} raise, {len(listed)} with listed weights beyond {LISTED:.1%}"
    )
    return dict(
        names=n, runs=len(runs), whole=len(whole), silent=len(silent), wrong=len(wrong), raised=len(raised),
        listed=len(listed), text=text,
    )  # fmt: skip


NAMES = """
## Names

{rule}
"""

HEAD = """# Architectures

<!-- Written by `make architectures`: change tests/architectures, not this page. -->

What tl_backward does with every architecture that TransformerLens registers, measured on tiny random models in float64
against autograd ({versions}).

{about}
"""

READING = """
A name counts where a model of it builds offline and runs in plain TransformerLens; the others stand [below](#not-run) with
the error. *Whole* means that every parameter that gets a gradient is captured, in each pass that was tried: text, and the
model's own inputs (images, sounds, a decoder's tokens), with which its towers run. TransformerLens asks for
torchvision or timm before it wraps seven of them; only processors need these (and Gemma3n's vision tower, which is left out), so that is switched
off here. The names of weights follow [one rule](#names).

- **captured / listed / silent**: percent of the elements that get a gradient; *listed* ones have a reason in
  `sites.account()`, *silent* ones would be missing without a word.
- **of it whole**: percent whose gradient is in `cache.parameter_gradients`, without factors: vectors, scalars, convolution kernels,
  tables that are added as they stand, biases of experts.
- **worst error**: largest `max|error| / max|gradient|` over all parameters. Where transformers itself rounds to float32 (norms
  of Gemma, routers), the error with that rounding switched off stands first. Experts that run in `grouped_mm`, which has no
  float64, are computed by products of each group there, and in float32 as torch does it, to 1e-5.
- **lens**: `backward_lens`. **readout**: the last residual stream read in words, against the model's logits.
  **control**: `random_init`. **hook points**: how many `extend` adds, all of which fire and change nothing.
- **sweep**, **similarity**: of two prompts in one padded batch, against each prompt's gradient alone. **edits**:
  `shift_edit` of the last block (or, where shifts are refused, a gradient edit): what is written is what was said, and
  comes off to the bit. **alignment**: `match_parameters` of the model with itself. **inversion**: activations at the end
  of the last block against the pass's own, and a preimage that is the prompt's own.
"""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


class _Notes:
    """Why something is refused, each reason once, by number."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def __call__(self, text: str) -> str:
        """A cell: what is refused is told below."""
        head, found, reason = text.partition("refused: ")
        if not found:
            return _short(text)
        reason = re.sub(r"blocks\.\d+\.|\[[\d, ]+\]", lambda m: "[...]" if m[0][0] == "[" else "blocks.N.", reason)
        number = self.numbers.setdefault(reason, len(self.numbers) + 1)
        return f"{head}refused [{number}](#refused)"

    def lines(self) -> list[str]:
        """The list of reasons."""
        return [f"{number}. {_cell(reason)}" for reason, number in self.numbers.items()]


COLUMNS = ("lens", "readout", "control", "points")
USES = ("sweep", "similarity", "edits", "alignment", "inversion")


def _rows(world: dict, note: _Notes) -> list[str]:
    names = [
        "architecture",
        "captured / listed / silent %",
        "of it whole %",
        "worst error",
        *COLUMNS[:3],
        "hook points",
        *USES,
    ]
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for result in sorted(world["results"], key=lambda r: r["name"].lower()):
        if not result["runs"]:
            continue
        notes = [f"{name}: {why}" for name, why in (result.get("errors") or {}).items()]
        notes += [f"{name}: {why}" for name, why in (result.get("failed") or {}).items()]
        notes += [f"logits {result['logits']}"] if result.get("logits") else []
        name = result["name"] + (f" *({'; '.join(notes)[:260]})*" if notes else "")
        cells = [name, coverage(result), whole(result), error(result)]
        cells += [note(result.get(key, "")) for key in COLUMNS]
        cells += [note((result.get("uses") or {}).get(key, "")) for key in USES]
        lines.append("| " + " | ".join(map(_cell, cells)) + " |")
    return lines


def _rule() -> str:
    """How weights are named, as the module that does it says."""
    return (names.__doc__ or "").strip().partition("\n\n")[2].replace('"', "`")


def _short(text: str) -> str:
    return text if len(text) <= 110 else text[:107] + "..."


def page(worlds: list[dict]) -> str:
    """docs/architectures.md."""
    about = "\n".join(f"- **TransformerLens {w['about']['transformer-lens']}**: {counts(w)['text']}." for w in worlds)
    versions = ", ".join(f"{name} {v}" for name, v in worlds[-1]["about"].items() if name != "transformer-lens")
    parts = [HEAD.format(about=about, versions=versions), READING, NAMES.format(rule=_rule())]
    note = _Notes()
    for world in worlds:
        parts.append(f"\n## TransformerLens {world['about']['transformer-lens']}\n")
        parts += _rows(world, note)
    parts += [
        "\n## Refused {#refused}\n",
        "What is refused, in the words of the call (names of weights and shapes are of one row).\n",
    ]
    parts += note.lines()
    parts.append("\n## Not run {#not-run}\n")
    parts += ["| architecture | TransformerLens | why |", "|---|---|---|"]
    gone: dict[tuple[str, str], list[str]] = {}
    for world in worlds:
        version = world["about"]["transformer-lens"]
        for result in world["results"]:
            if not result["runs"]:
                why = (
                    result["boots"] if result["boots"] != "yes" else "; ".join(dict.fromkeys(result["failed"].values()))
                )
                gone.setdefault((result["name"], why), []).append(version)
        for name in world["absent"]:
            gone.setdefault((name, "no class in transformers: its code comes with the weights"), []).append(version)
    for (name, why), versions_of in sorted(gone.items(), key=lambda item: item[0][0].lower()):
        parts.append(f"| {_cell(name)} | {', '.join(versions_of)} | {_cell(why[:260])} |")
    return "\n".join(parts) + "\n"
