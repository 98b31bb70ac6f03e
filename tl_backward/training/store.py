"""A store of a data set's gradients, asked who wrote an answer without running the model over the data again."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from tl_backward._support.checks import as_path, check_choice, check_k, short
from tl_backward._support.processes import process, together
from tl_backward._support.public import public
from tl_backward._support.storage import fingerprint
from tl_backward._support.types import Prompt, TransformerLensModel
from tl_backward.gradients.examples import EXAMPLES, Example, batching
from tl_backward.gradients.losses import next_token_loss
from tl_backward.gradients.similarity import Examples, Metric, Part, captured, encoded, gradient_similarity, listed
from tl_backward.model.digest import model_digest
from tl_backward.model.inputs import check_text_model
from tl_backward.text.cases import EditCase
from tl_backward.text.encoded import prompt_text
from tl_backward.text.options import TextOptions
from tl_backward.text.token_strings import output_size
from tl_backward.training.authors import Authors, drawn, interval, leading, written
from tl_backward.training.projections import Projection, ProjectionKind, inverse
from tl_backward.training.shards import ROUNDING, Query, Shard
from tl_backward.training.store_building import Building
from tl_backward.training.store_folder import FORMAT, Pair, StoreFolder
from tl_backward.weights import weight_sites
from tl_backward.weights.blocks import chosen_weights

_LEAST_BYTES = 16
_SHARE = 16
"""One in how many examples a query reads whole: of texts asked with facts, the hardest, .995 of the first ten."""
_BEYOND = 10
"""Examples read whole for each that is wanted, at least: of 2,000 one in 16 are too few to choose 50 from."""
_FEW = 8
"""Weights up to which all are: by few the leading entries alone tell less, and reading all takes 5 ms of each."""
_AGAIN = 50
"""Examples, at least, that are captured again for exact scores."""


@public
class GradientStore:
    """The gradients of a data set's examples in a folder, projected weight by weight, read by memory map.

    Of each example e and weight W it keeps the unit gradient G = dL_e/dW / |dL_e/dW|: its factors (float32) where they
    take no more than the projection, entries of P^T G Q (float16), and |dL_e/dW|. A query's scores are
    sum_W |dL_q/dW| |dL_e/dW| <G_q, G_e>, exact for factors, else of the entries that are kept; what is kept of an
    example's norms is exact, so that an error of a cosine is one of the projection alone.
    """

    def __init__(self, path: Path, model: TransformerLensModel, plan: dict, pairs: list[Pair]) -> None:
        self.path = path
        self._model, self._pairs, self._plan = model, pairs, plan
        self._folder = StoreFolder(path)
        self._shards: list[Shard] = self._folder.shards()
        self._projections: list[Projection] = self._folder.projections(self.weights)

    @property
    def weights(self) -> tuple[str, ...]:
        """Full names, in the model's order."""
        return tuple(self._plan["weights"])

    @property
    def names(self) -> tuple[str, ...]:
        """The examples as text, a target after an arrow."""
        return tuple(text if target is None else f"{text} -> {target}" for text, target in self._pairs)

    @property
    def n_bytes(self) -> int:
        """What the files take."""
        return self._folder.n_bytes()

    def __len__(self) -> int:
        return len(self._pairs)

    def __repr__(self) -> str:
        return (
            f"GradientStore({str(self.path)!r}: {len(self)} examples, {len(self.weights)} weights, "
            f"{self.n_bytes / 2**20:.1f} MiB)"
        )

    @classmethod
    def build(
        cls,
        model: TransformerLensModel,
        dataset: Examples,
        *,
        out: str | Path,
        weights: str | list[str] | None = None,
        bytes_per_weight: int = 4096,
        projection: ProjectionKind = "pca",
        n_sample: int = 512,
        n_random: int = 100,
        seed: int = 0,
        text_options: TextOptions = EXAMPLES,
        show_progress: bool = True,
    ) -> "GradientStore":
        """Capture every example once and keep its gradients in `out`; an interrupted build goes on where it was.

        Where torch.distributed is initialised, as under `accelerate launch`, processes share the work and one folder.
        On one machine they write the bits that one process writes.

        Args:
            model: whose gradients.
            dataset: texts, (prompt, target) pairs, edit cases, or a table or file of them, as in `gradient_similarity`;
                losses that are functions are not kept, and refused.
            out: a new folder, or that of the interrupted build.
            weights: as in `gradient_similarity`; None for what each block writes with.
            bytes_per_weight: at most, of each example and weight; 4,096 are 2,048 numbers; of half as many a query
                takes half the time.
            projection: "pca", the leading pairs of directions of x and of delta over a sample, or "random", Gaussian
                ones.
            n_sample: examples of the sample.
            n_random: examples whose scores as queries give each example's interval; none below 20.
            seed: of both draws and of random directions.
            text_options: batch_size and prepend_bos.
            show_progress: show a bar.

        Raises:
            ValueError, TypeError: bad input as in `gradient_similarity`; a folder with something else in it, or with a
                store of other settings, data or weights.

        Examples:
            >>> facts = [(case.prompt, case.target) for case in tlb.zoo.edit_cases("test")[:30]]
            >>> store = tlb.training.GradientStore.build(model, facts, out="store", show_progress=False)
            >>> found = store.query(*facts[7], exact=True)
            >>> found.top[0].item(), round(found.scores[7].item(), 2), found.written.target_rank[0].item()
            (7, 1.0, 0)
        """
        check_text_model(model)
        check_choice("projection", projection, get_args(ProjectionKind))
        for name, value, least in (
            ("bytes_per_weight", bytes_per_weight, _LEAST_BYTES),
            ("n_sample", n_sample, 1),
            ("n_random", n_random, 0),
        ):
            if value < least:
                raise ValueError(f"Expected {name} of at least {least}, got {value}; the default is enough for most.")
        batch_size, prepend_bos = batching(text_options)
        pairs = _pairs(dataset)
        examples, _ = encoded(model, _examples(pairs), prepend_bos)
        names = tuple(chosen_weights(model, weight_sites(model), weights))
        plan = {
            "format": FORMAT,
            "model": model_digest(model),
            "data": fingerprint([(each.tokens, each.n_forced, each.target, each.asked) for each in examples]),
            "weights": list(names),
            "n_examples": len(examples),
            "bytes_per_weight": bytes_per_weight,
            "projection": projection,
            "n_sample": n_sample,
            "n_random": n_random,
            "seed": seed,
            "batch_size": batch_size,
            "prepend_bos": prepend_bos,
        }
        folder, (rank, _) = StoreFolder(out), process()
        with together():
            folder.check_for(plan)
        with together():
            if rank == 0:
                folder.begin(plan, pairs)
        building = Building(model, examples, names, batch_size, bytes_per_weight, projection, n_sample, n_random, seed)
        building.write(folder, show_progress=show_progress)
        return cls(as_path(out), model, plan, pairs)

    @classmethod
    def open(cls, path: str | Path, model: TransformerLensModel, *, dataset: Examples | None = None) -> "GradientStore":
        """A store that was built; shards are mapped, and read where a query needs them.

        Args:
            path: its folder.
            model: the model that it was built with.
            dataset: what it should be of; None to take what it is of.

        Raises:
            ValueError: no finished store, one of another format, model or data set, or a shard of another length.
        """
        folder = StoreFolder(path)
        plan, pairs = folder.plan(), folder.pairs()
        if plan["model"] != model_digest(model):
            raise ValueError(
                f"Expected the model that the store {str(path)!r} was built with, got another, other weights or "
                "another data type; load that one, or build a store of this one."
            )
        if dataset is not None:
            _check_same(path, pairs, _pairs(dataset))
        return cls(as_path(path), model, plan, pairs)

    def verify(self) -> None:
        """Read every shard and compare it with its checksum, which a query does not.

        Raises:
            ValueError: one is damaged.
        """
        self._folder.verify()

    def scores(
        self,
        prompt: Prompt,
        target: str | None = None,
        *,
        weights: str | list[str] | None = None,
        metric: Metric = "cosine",
        damping: float | None = None,
    ) -> Float[Tensor, "example"]:
        """Every example's score for a query: one pass of the query, and one reading of what is kept.

        Args:
            prompt: of the query, as text or as token ids.
            target: its answer; None where the prompt is a whole text, which is predicted itself.
            weights: some of the store's, by name; None for all.
            metric: "cosine" or "inner".
            damping: the query's gradient is multiplied by the inverse covariances of x and of delta, damped by so many
                times their mean eigenvalue, within the projections: <A^-1 G_q B^-1, G_e>, influence with K-FAC's
                blocks (Grosse et al. 2023) in the projected space. A "cosine" is that with what G_q has become.

        Raises:
            ValueError, KeyError: an empty query, a weight that is not in the store, damping of 0 or less.
        """
        return self.scores_of(*self._captured(prompt, target, weights), metric=metric, damping=damping)

    def scores_of(
        self, part: Part, chosen: Sequence[int], *, metric: Metric, damping: float | None = None
    ) -> Float[Tensor, "example"]:
        """The same of one example that was captured, over the weights with those numbers, which it was captured of."""
        query, projections = self._query(part, chosen, metric, damping)
        scores, unit = self._summed(query, projections, chosen)
        return self._in_order(scores * unit if metric == "cosine" else scores)

    def leading_scores(
        self, part: Part, chosen: Sequence[int], n: int, *, metric: Metric, damping: float | None = None
    ) -> tuple[Float[Tensor, "example"], Float[Tensor, "example"]]:
        """The same where it is large: of the first by leading entries, one in 16; of the others by these alone.

        Args:
            part: as there.
            chosen: as there; of few weights all is read.
            n: examples that are wanted; ten times as many, at least, are read whole.
            metric: as there.
            damping: as there.

        Returns:
            The scores, and how far each may be from that of `scores_of`: 0 of those that were read whole. Of entries
            q and e that do not lead, |sum_W <q_W, e_W>| <= sum_W |q_W| |e_W|, some ten times what it is.
        """
        if len(chosen) <= _FEW or n >= len(self):
            return self.scores_of(part, chosen, metric=metric, damping=damping), torch.zeros(len(self)).double()
        query, projections = self._query(part, chosen, metric, damping)
        scores, unit = self._summed(query, projections, chosen, leading=True)
        rests = torch.cat([shard.rests[chosen] for shard in self._shards], 1).double()
        errors = (query.rest_norms(projections) * query.norms)[:, 0] @ rests
        if metric == "cosine":
            scores, errors = scores * unit, errors * unit
        n_first = min(len(self), max(_BEYOND * n, len(self) // _SHARE))
        is_first = scores >= scores.topk(n_first).values[-1]  # and all that are equal to the last
        of_shards = [
            each.nonzero().flatten() for each in is_first.split([len(shard.indices) for shard in self._shards])
        ]
        following = [
            shard.following(query, chosen, places) for shard, places in zip(self._shards, of_shards, strict=True)
        ]
        scores[is_first] += torch.cat(following) * (unit[is_first] if metric == "cosine" else 1.0)
        return self._in_order(scores), self._in_order(errors.masked_fill(is_first, 0.0))

    def _summed(
        self, query: Query, projections: list[Projection], chosen: Sequence[int], *, leading: bool = False
    ) -> tuple[Float[Tensor, "example"], Float[Tensor, "example"]]:
        """Inner products with a query, by the leading entries or by all, and what makes cosines of them.

        In the order of the shards, and summed over the weights for all of them at once: small operations between large
        ones find nothing in the cache.
        """
        found = torch.cat([shard.inner(query, projections, chosen, leading=leading) for shard in self._shards], 1)
        norms = torch.cat([shard.norms[chosen] for shard in self._shards], 1)
        sizes = torch.linalg.vector_norm(norms, dim=0) * query.norms.norm()
        return query.norms[:, 0] @ (found.double() * norms), inverse(sizes)

    def _in_order(self, of_shards: Float[Tensor, "example"]) -> Float[Tensor, "example"]:
        """Examples in the order of the data set, from those of the shards."""
        found = torch.empty_like(of_shards)
        found[torch.cat([shard.indices for shard in self._shards])] = of_shards
        return found

    def _query(
        self, part: Part, chosen: Sequence[int], metric: Metric, damping: float | None
    ) -> tuple[Query, list[Projection]]:
        """What is asked with, in the projections of the weights that it is of."""
        check_choice("metric", metric, get_args(Metric))
        if damping is not None and not 0 < damping < float("inf"):
            raise ValueError(f"Expected damping above 0, got {damping}; None leaves the covariances out.")
        projections = [self._projections[number] for number in chosen]
        query = Query.of(part, projections)
        return query if damping is None else query.damped(projections, damping), projections

    def query(
        self,
        prompt: Prompt,
        target: str,
        *,
        n: int = 10,
        k: int = 10,
        exact: bool = False,
        quick: bool = False,
        weights: str | list[str] | None = None,
        metric: Metric = "cosine",
        damping: float | None = None,
    ) -> Authors:
        """The examples whose own step would most write an answer, as `who_wrote` says it.

        Intervals are of the random queries of `build`, over all the store's weights, wider on both sides by what
        float16 rounds (.001 of a cosine). Of some weights, or with damping, there is none, unless `exact`.

        Args:
            prompt: of the query, as text or as token ids.
            target: its answer.
            n: examples to read in words.
            k: words of each; 0 for none, which spares a pass of each.
            exact: capture the first max(4 n, 50) again, and give them, and their intervals, their exact scores.
            quick: half the time over many weights. Of more than eight, all that is kept is read of one example in 16
                (40 n and 500, at least), the first by the leading quarter of it, and `top` is among these: nearly
                always the same (.98 to .995 of the first ten, at 4,096 bytes a weight), now and then none of it, and
                nothing tells when. The other examples' scores are of the quarter alone; `errors` says how far off each
                may be, and their intervals are wider by it.
            weights: as in `scores`.
            metric: "inner" products or "cosine"s, which leave the examples' lengths out.
            damping: as there.

        Raises:
            ValueError, KeyError: as `scores` does; n below 1; `exact` with damping, or with `quick`.
        """
        if n < 1:
            raise ValueError(f"Expected n of at least 1, got {n}; it is how many examples are read in words.")
        if exact and damping is not None:
            raise ValueError("Expected exact scores or damped ones, got both; damping is within the projections.")
        if exact and quick:
            raise ValueError("Expected exact scores or quick ones, got both; leave one of them out.")
        if target is None:
            raise ValueError("Expected a query's target, got None; a whole text is asked with by `scores`.")
        if k:
            check_k(k, output_size(self._model) or self._model.cfg.d_vocab)
        part, chosen = self._captured(prompt, target, weights)
        n_first = max(4 * n, _AGAIN)
        if quick:
            scores, errors = self.leading_scores(part, chosen, n_first, metric=metric, damping=damping)
        else:
            scores, errors = self.scores_of(part, chosen, metric=metric, damping=damping), None
        names = tuple(self.weights[number] for number in chosen)
        low, high = (torch.full_like(scores, float("nan")) for _ in range(2))
        n_random = 0
        if len(names) == len(self.weights) and damping is None:
            n_random = min(self._plan["n_random"], len(self))
            for shard in self._shards:
                error = ROUNDING * (shard.sizes() * part.norms.norm() if metric == "inner" else 1.0)
                for whole, of_shard, sign in ((low, shard.low, -1), (high, shard.high, 1)):
                    whole[shard.indices] = of_shard[int(metric == "cosine")] + sign * error
        known = scores
        if errors is not None:
            low, high, known = low - errors, high + errors, scores.masked_fill(errors > 0, -float("inf"))
        top = leading(known, n)
        if exact:
            first = leading(scores, n_first).sort().values  # of equal exact scores the first of the data set leads
            scores[first], low[first], high[first], n_random = self._again(prompt, target, first, names, metric)
            top = first[leading(scores[first], len(top))]
        of_top = self._encoded([self._pairs[i] for i in top.tolist()]) if k else []
        words = written(self._model, self._asked(prompt, target), of_top, names, k)
        asked = prompt_text(self._model, prompt)
        return Authors(asked, target, self.names, scores, low, high, top, words, names, metric, n_random, errors)

    def _again(
        self, prompt: Prompt, target: str, first: Tensor, names: tuple[str, ...], metric: Metric
    ) -> tuple[Tensor, Tensor, Tensor, int]:
        """Exact scores of some examples, and their intervals for the random queries."""
        random = drawn(len(self), self._plan["n_random"], self._plan["seed"] + 1)
        queries = [(prompt, target), *_examples([self._pairs[i] for i in random])]
        given = _examples([self._pairs[i] for i in first.tolist()])
        options = TextOptions(batch_size=self._plan["batch_size"], prepend_bos=self._plan["prepend_bos"])
        found = gradient_similarity(
            self._model, queries, given, weights=list(names), metric=metric, text_options=options, show_progress=False
        ).matrix
        others = found[1:].masked_fill(torch.tensor(random, dtype=torch.long)[:, None] == first, float("nan"))
        return found[0], *interval(others), len(others)

    def _captured(self, prompt: Prompt, target: str | None, weights: str | list[str] | None) -> tuple[Part, list[int]]:
        """A query, and the numbers of the weights that it was captured of."""
        chosen = self._chosen(weights)
        names = [self.weights[number] for number in chosen]
        return captured(self._model, [self._asked(prompt, target)], names), chosen

    def _chosen(self, weights: str | list[str] | None) -> list[int]:
        """The numbers of some weights."""
        if weights is None:
            return list(range(len(self.weights)))
        asked = chosen_weights(self._model, weight_sites(self._model), weights)
        absent = next((name for name in asked if name not in self.weights), None)
        if absent is not None:
            raise ValueError(
                f"Expected weights that the store keeps ({', '.join(self.weights)}), got {absent}; build one with it."
            )
        return [self.weights.index(name) for name in asked]

    def _asked(self, prompt: Prompt, target: str | None) -> Example:
        if prompt is None or (isinstance(prompt, str) and not prompt) or target == "":
            raise ValueError(f"Expected a query's prompt and its target, got {prompt!r:.60} and {target!r}; give both.")
        return self._encoded([(prompt, target)])[0]

    def _encoded(self, pairs: Sequence[tuple[Prompt, str | None]]) -> list[Example]:
        return encoded(self._model, _examples(pairs), self._plan["prepend_bos"])[0]


def _pairs(dataset: Examples) -> list[Pair]:
    """A data set as texts.

    Raises:
        ValueError, TypeError: no data set, or one with losses that are no texts.
    """
    examples = listed(dataset)
    if isinstance(examples, str) or not isinstance(examples, Sequence) or not examples:
        got = "one text" if isinstance(examples, str) else "none" if not examples else short(examples)
        raise ValueError(f"Expected a list of examples, got {got}; a single one is a list of one.")
    pairs: list[Pair] = []
    for index, each in enumerate(cast(Sequence[object], examples)):
        pair = (each.prompt, each.target) if isinstance(each, EditCase) else each
        whole = pair if isinstance(pair, tuple) and len(pair) == 2 else (pair, None)
        prompt, target = cast(tuple[object, object], whole)
        if target is next_token_loss:
            target = None
        if not isinstance(prompt, str) or not (target is None or isinstance(target, str)):
            raise TypeError(
                f"Expected examples as texts or (prompt, target) pairs of texts, which a store can keep, got "
                f"{short(each)} as number {index}; leave losses that are functions to who_wrote."
            )
        pairs.append((prompt, target))
    return pairs


def _examples(pairs: Sequence[tuple[Prompt, str | None]]) -> list:
    """What `gradient_similarity` takes: texts are pairs too, so that both kinds may stand beside each other."""
    return [(text, next_token_loss) if target is None else (text, target) for text, target in pairs]


def _check_same(path: str | Path, kept: Sequence[Pair], given: Sequence[Pair]) -> None:
    differs = next((i for i, (one, two) in enumerate(zip(kept, given, strict=False)) if one != two), None)
    if differs is None and len(kept) == len(given):
        return
    what = f"one whose example {differs} is another" if differs is not None else f"one of {len(given)}"
    raise ValueError(
        f"Expected the data set of {len(kept)} examples that the store {str(path)!r} is of, got {what}; build a store "
        "of this one."
    )
