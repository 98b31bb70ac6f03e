"""The causal check: whether a text of the preimage does what the query does, its activation in the query's place."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_backward._support.bootstrap import bootstrap
from tl_backward._support.checks import check_at_least_one
from tl_backward._support.html import table
from tl_backward._support.public import public
from tl_backward._support.saved import Saved
from tl_backward._support.sentences import overlap, percent
from tl_backward._support.types import DataFrame, TransformerLensModel
from tl_backward.inversion.activations import collect_at
from tl_backward.inversion.preimage import Preimage
from tl_backward.inversion.query import Query
from tl_backward.model.guard import rng_untouched
from tl_backward.model.inputs import without_cache
from tl_backward.model.place import Place
from tl_backward.text.token_strings import text_column, token_string
from tl_backward.vocabulary.readout import single_token


@dataclass(frozen=True, repr=False, eq=False)
class PatchCheck(Saved):
    """What happens to the query's output when another text's activation is put in its place."""

    query: Query
    answer: str
    """The token whose logit is followed."""
    texts: tuple[str, ...]
    """Whose activations were put in: those inside, then those outside."""
    inside: Tensor
    """[text], bool."""
    distances: Float[Tensor, "text"]
    kl: Float[Tensor, "text"]
    """KL(clean || patched) of the next-token distribution, in nats."""
    logit_change: Float[Tensor, "text"]
    """The answer's patched logit minus its clean one, each relative to the mean logit."""
    kept: Tensor
    """[text], bool: whether the most likely token is the clean run's."""

    def __repr__(self) -> str:
        return f"PatchCheck({self.query!r}: mean KL {self._mean(True):.3g} inside, {self._mean(False):.3g} outside)"

    def _mean(self, inside: bool) -> float:
        return float(self.kl[self.inside == inside].mean())

    def to_frame(self) -> DataFrame:
        """One row a text: text, inside, distance, kl, logit_change, kept."""
        import pandas

        return pandas.DataFrame(
            {
                "text": text_column(self.texts),
                "inside": self.inside.tolist(),
                "distance": self.distances.tolist(),
                "kl": self.kl.tolist(),
                "logit_change": self.logit_change.tolist(),
                "kept": self.kept.tolist(),
            }
        )

    def summary(self) -> str:
        """In one sentence: how often the answer survives texts inside, and texts outside."""
        own, other = (bootstrap(self.kept[chosen].double()) for chosen in (self.inside, ~self.inside))
        texts = int((~self.inside).sum())
        first = (
            f"With the activation of texts inside the most likely token stays in {percent(float(own.mean))} of "
            f"{int(self.inside.sum())} runs"
        )
        if not texts:
            return f"{first}; no text outside was tried."
        clear = not overlap((float(own.low), float(own.high)), (float(other.low), float(other.high)))
        beside = f"with that of texts outside in {percent(float(other.mean))} of {texts}"
        return f"{first}, {beside}{'' if clear else ': no clear difference'}."

    def means(self) -> DataFrame:
        """For inside and outside: n, and kl, |logit_change| and kept with their 95 % bootstrap intervals."""
        import pandas

        columns = {"kl": self.kl, "|logit change|": self.logit_change.abs(), "answer kept": self.kept.double()}
        rows = {}
        for name, chosen in (("inside", self.inside), ("outside", ~self.inside)):
            rows[name] = {"n": int(chosen.sum())}
            for label, values in columns.items():
                each = bootstrap(values[chosen])
                rows[name][label] = float(each.mean)
                rows[name] |= {f"{label} low": float(each.low), f"{label} high": float(each.high)}
        return pandas.DataFrame.from_dict(rows, orient="index")

    def _repr_html_(self) -> str:
        """A static table of the means."""
        frame = self.means()
        caption = f"{self.query.text} at {self.query.site}, position {self.query.position}; answer {self.answer}"
        return table(list(frame), frame.to_numpy().tolist(), row_names=list(frame.index), caption=caption)


@public
def verify_by_patching(
    model: TransformerLensModel,
    preimage: Preimage,
    *,
    n: int = 50,
    answer: str | int | None = None,
    seed: int = 0,
) -> PatchCheck:
    """Swap the query's activation for that of texts inside and of texts outside, and measure the output's change.

    If the preimage is what the model knows there, texts inside change little and texts outside change what depends on
    it: the paper's causal check. Each text's activation is taken where it comes nearest to the query's and put at the
    query's position alone; the output is read at the query's last token.

    Args:
        model: the probed model.
        preimage: with texts inside and outside; those inside are drawn by their weights, those outside evenly.
        n: how many of each at most.
        answer: the token whose logit is followed; None for the clean run's most likely one.
        seed: of the draws; the global RNG is left alone.

    Raises:
        ValueError: no text of weight inside, or n < 1.

    Examples:
        >>> decoder = tlb.inversion.load("counting")
        >>> p = decoder.preimage("vvzccvczvvvzvcvc|v:", site=("resid_mid", 1), position=-1, n=50)
        >>> check = tlb.inversion.verify_by_patching(decoder.model, p, n=5)
        >>> bool(check.kl[check.inside].mean() < check.kl[~check.inside].mean())
        True
    """
    check_at_least_one("n", n, "50 is the default")
    chosen = _drawn(preimage, n, seed)
    query = preimage.query
    site = Place(query.site.read_at, head=query.site.head)  # a head's output is patched before W_O
    donors = preimage.inputs.select(chosen)
    values = collect_at(model, donors, site, preimage.best_positions[chosen], show_progress=False)[site]
    clean = _run(model, query, site, None)[0]
    token = int(clean.argmax()) if answer is None else single_token(model, answer)
    patched = torch.cat([_run(model, query, site, part) for part in values.split(256)])
    before, after = clean.log_softmax(-1), patched.log_softmax(-1)
    return PatchCheck(
        query=query,
        answer=token_string(model.tokenizer, token),
        texts=donors.texts,
        inside=preimage.inside[chosen],
        distances=preimage.distances[chosen],
        kl=(before.exp() * (before - after)).sum(-1).clamp(min=0),
        logit_change=(patched - patched.mean(-1, keepdim=True))[:, token] - (clean - clean.mean())[token],
        kept=patched.argmax(-1) == clean.argmax(),
    )


def _drawn(preimage: Preimage, n: int, seed: int) -> Int[Tensor, "chosen"]:
    generator = torch.Generator().manual_seed(seed)
    candidates = preimage.weights.nonzero().flatten()
    if not len(candidates):
        raise ValueError(
            f"Expected a preimage with texts inside, got {preimage!r}; take a larger epsilon, or a search for some."
        )
    inside = candidates[preimage.weights[candidates].multinomial(min(n, len(candidates)), generator=generator)]
    others = (~preimage.inside & preimage.distances.isfinite()).nonzero().flatten()
    outside = others[torch.randperm(len(others), generator=generator)[:n]]
    return torch.cat([inside, outside])


def _run(
    model: TransformerLensModel, query: Query, site: Place, values: Float[Tensor, "donor d"] | None
) -> Float[Tensor, "donor d_vocab"]:
    """The query's last logits, float64 on the CPU, with each of `values` at its position; one clean row for None."""

    def put(activation: Tensor, hook: object) -> Tensor:
        given = activation.clone()
        own = given[:, query.position] if site.head is None else given[:, query.position, site.head]
        own.copy_(donors.reshape(own.shape))
        return given

    device = model.W_U.device
    donors = torch.zeros(1) if values is None else values.to(device)
    hooks = [] if values is None else [(site.name, put)]
    options: dict[str, object] = {"return_type": "logits", **without_cache(model)}
    tokens = query.tokens.to(device).expand(1 if values is None else len(values), -1)
    with torch.no_grad(), rng_untouched(model), model.hooks(fwd_hooks=hooks, bwd_hooks=[]):
        return model(tokens, **options)[:, -1].double().cpu()
