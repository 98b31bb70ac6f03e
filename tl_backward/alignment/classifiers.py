"""Classifiers on a model's last token: fine-tuned on one model, translated to another (Dar et al. 2022, sec. 5)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor, nn
from tqdm.auto import trange

from tl_backward._support.bootstrap import Interval, bootstrap
from tl_backward._support.public import public
from tl_backward._support.types import TransformerLensModel, typed
from tl_backward.alignment.stitched import StitchedModel
from tl_backward.alignment.stitching import zero_shot_stitch
from tl_backward.alignment.vocabularies import TokenMap
from tl_backward.model.checks import check_model, check_one_device
from tl_backward.model.controls import copied
from tl_backward.model.head import Head
from tl_backward.model.partial import streams_after
from tl_backward.text.ids import ARRAYS, as_ids
from tl_backward.text.prompts import Batch, encode_prompts

_CHUNK = 256  # prompts in one pass


@dataclass(frozen=True, repr=False, eq=False)
class Classifier:
    """A model with a linear head on its last token: logits = final_norm(x_last) @ weight + bias."""

    model: TransformerLensModel
    """The model whose layers are read."""
    weight: Float[Tensor, "d_model label"]
    bias: Float[Tensor, "label"]
    stitched: StitchedModel | None = None
    """Where another model's first layers and a kernel stand before the model's last ones; its B is `model`."""

    def __repr__(self) -> str:
        d_model, n_labels = self.weight.shape
        where = "" if self.stitched is None else f", behind {self.stitched!r}"
        return f"Classifier({n_labels} labels, d_model={d_model}{where})"

    def logits(self, prompts: Sequence[str]) -> Float[Tensor, "prompt label"]:
        """Logits of the labels, without gradients."""
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        with torch.no_grad():
            parts = [self._of_batch(self._encode(texts[i : i + _CHUNK])) for i in range(0, len(texts), _CHUNK)]
        return torch.cat(parts)

    def predict(self, prompts: Sequence[str]) -> Int[Tensor, "prompt"]:
        """The likeliest label of each prompt."""
        return self.logits(prompts).argmax(-1)

    def accuracy(
        self,
        prompts: Sequence[str],
        labels: Int[Tensor, "prompt"],
        *,
        groups: Int[Tensor, "prompt"] | None = None,
        level: float = 0.95,
        seed: int = 0,
    ) -> Interval:
        """Share of prompts whose label is right, with its bootstrap interval.

        Args:
            prompts: texts.
            labels: the right ones.
            groups: prompts that share something random, such as a sentence template: resampled together.
            level: of confidence.
            seed: of the resampling.
        """
        right = (self.predict(prompts).cpu() == labels.cpu()).double()
        return bootstrap(right, groups=groups, level=level, seed=seed)

    def _encode(self, texts: list[str]) -> Batch:
        return encode_prompts(self.model, texts) if self.stitched is None else self.stitched.encode(texts)

    def _of_batch(self, batch: Batch) -> Tensor:
        last = self.model.cfg.n_layers - 1
        start = None if self.stitched is None else (self.stitched.layer_b, self.stitched.translated(batch))
        stream = streams_after(self.model, batch.tokens, [last], mask=batch.mask, start=start)[last]
        rows = torch.arange(batch.n_examples, device=stream.device)
        return Head.of(self.model).normed(stream[rows, batch.last.to(stream.device)]) @ self.weight + self.bias


@public
@typed
def fine_tune(
    model: TransformerLensModel,
    prompts: Sequence[str],
    labels: Integer[Tensor, "prompt"] | Sequence[int],
    *,
    steps: int = 60,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    seed: int = 0,
    show_progress: bool = True,
) -> Classifier:
    """Fine-tune a copy of a model's blocks, with a new linear head, on the cross-entropy of labels (AdamW).

    Embedding, unembedding and final norm stay as they were, so that the copy still speaks the model's vocabulary.
    Neither `model` nor the global RNG is touched.

    Args:
        model: a HookedTransformer or TransformerBridge with a tokenizer.
        prompts: texts; their last token is read.
        labels: one a prompt, from 0.
        steps: of training.
        batch_size: prompts a step.
        learning_rate: AdamW's.
        seed: of the head and of the batches.
        show_progress: draw a progress bar if it takes longer than a second.

    Raises:
        ValueError: not one label a prompt, fewer than two labels, none of a prompt.

    Examples:
        >>> prompts = ["Anna Berg lives in", "The pet of Anna Berg is a"] * 8
        >>> c = tlb.alignment.fine_tune(model, prompts, torch.tensor([0, 1] * 8), steps=5, show_progress=False)
        >>> c.predict(prompts[:2]).tolist()
        [0, 1]
    """
    check_model(model)
    check_one_device(model)
    if isinstance(prompts, str):
        raise TypeError("Expected a list of prompts, got one text; a single one is a list of one.")
    labels = as_ids(labels if isinstance(labels, ARRAYS) else torch.tensor(labels), "labels")
    if len(prompts) != len(labels) or not len(labels) or int(labels.min()) < 0 or int(labels.max()) < 1:
        raise ValueError(
            f"Expected a label for each of {len(prompts)} prompts, from 0 and two at least, got {len(labels)} labels; "
            "count them from 0."
        )
    tuned, generator, head = copied(model), torch.Generator().manual_seed(seed), Head.of(model)
    start = torch.randn(head.d_model, int(labels.max()) + 1, generator=generator) * head.d_model**-0.5
    weight = start.to(model.W_U.device, head.dtype).requires_grad_()
    bias = torch.zeros_like(weight[0]).requires_grad_()
    module = cast(nn.Module, tuned).requires_grad_(False)
    # A Bridge lists parameters through its blocks' wrapped layers; shared ones come once.
    stack = module.get_submodule("blocks").children()
    blocks = dict.fromkeys(parameter.requires_grad_() for block in stack for parameter in block.parameters())
    optimizer = torch.optim.AdamW([*blocks, weight, bias], lr=learning_rate)
    classifier = Classifier(tuned, weight, bias)
    with torch.enable_grad():
        for _ in trange(steps, disable=not show_progress, delay=1, leave=False, desc="fine-tune"):
            chosen = torch.randint(len(prompts), (batch_size,), generator=generator).tolist()
            logits = classifier._of_batch(encode_prompts(tuned, [prompts[int(i)] for i in chosen]))
            loss = nn.functional.cross_entropy(logits, labels[chosen].to(logits.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    optimizer.zero_grad()
    module.requires_grad_(False)
    return Classifier(tuned, weight.detach(), bias.detach())


@public
@typed
def transfer_head(
    classifier: Classifier,
    model: TransformerLensModel,
    *,
    cut: int,
    cut_classifier: int | None = None,
    kernel: Float[Tensor, "d_model_b d_model_a"] | None = None,
    fold_ln: bool = False,
    token_map: TokenMap | None = None,
) -> Classifier:
    """Translate a classifier fine-tuned on A to a model B that was only pretrained, with no training.

    B's first `cut` blocks read the prompt; the kernel E_B E_A^+ carries their residual stream into A's; there the
    fine-tuned blocks from `cut_classifier` on, and the head, go on. At the last cut the head alone is translated.

    Args:
        classifier: of model A, from `fine_tune` or made by hand.
        model: B, of any width.
        cut: how many of B's blocks run.
        cut_classifier: the first of A's blocks that runs; by default the same as `cut`, counted from the end where the
            models have different depths.
        kernel: another kernel than the translation from B to A, such as `random_kernel(...)`.
        fold_ln: as in `translation`.
        token_map: as in `translation`, from B to A.

    Raises:
        ValueError: a classifier that was translated already, vocabularies that differ without a map.
        IndexError: a cut that is not between two layers.

    Examples:
        >>> prompts = ["Anna Berg lives in", "The pet of Anna Berg is a"] * 8
        >>> c = tlb.alignment.fine_tune(model, prompts, torch.tensor([0, 1] * 8), steps=5, show_progress=False)
        >>> tlb.alignment.transfer_head(c, model, cut=2).predict(prompts[:2]).tolist()
        [0, 1]
    """
    if classifier.stitched is not None:
        raise ValueError("Expected a classifier of one model, got one that was translated; translate the original.")
    if cut_classifier is None:
        cut_classifier = max(0, classifier.model.cfg.n_layers - (model.cfg.n_layers - cut))
    stitched = zero_shot_stitch(
        model, cut, classifier.model, cut_classifier, kernel=kernel, fold_ln=fold_ln, token_map=token_map
    )
    return Classifier(classifier.model, classifier.weight, classifier.bias, stitched)
