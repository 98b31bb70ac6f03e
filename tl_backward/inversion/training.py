"""Train a decoder p(x | z) for a model's sites, on Hugging Face's Trainer (Huang et al. 2024, sec. 2.3)."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, TypeAlias, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformers import GPT2LMHeadModel

from tl_backward._support.checks import check_choice
from tl_backward._support.deprecation import old_keywords
from tl_backward._support.public import public
from tl_backward._support.storage import check_run
from tl_backward._support.types import TransformerLensModel
from tl_backward.activations import PlaceReader
from tl_backward.inversion.decoder import Decoder
from tl_backward.inversion.evaluation import decoder_rates, read_queries
from tl_backward.inversion.network import DecoderConfig, DecoderNetwork
from tl_backward.inversion.options import EPSILON, Closeness
from tl_backward.inversion.positions import Position
from tl_backward.inversion.storage import DESCRIPTION, N_PROBED, digest, vocabulary_digest
from tl_backward.inversion.stream import LAG, Drawing, Shares, TrainingStream, widened
from tl_backward.model.checks import check_model
from tl_backward.model.place import Places
from tl_backward.text.data import Data, TextSource
from tl_backward.text.encoded import encode, encode_rows
from tl_backward.text.token_strings import vocabulary_size

Precision: TypeAlias = Literal["no", "fp16", "bf16"]

_LEAST_SHARE = 0.05
"""The least weight of a site and position in drawing, before normalising: that of one decoded without error."""


@public
@dataclass(frozen=True)
class TrainingOptions:
    """How a decoder is trained: AdamW, a linear warm-up, then a cosine to zero.

    Raises:
        ValueError: epsilon <= 0, or another mixed precision.
    """

    drawing: Drawing = field(default_factory=Drawing)
    learning_rate: float = 3e-3
    warmup: float = 0.03
    """Share of the steps."""
    weight_decay: float = 0.05
    clip: float = 1.0
    """The gradient's norm is cut here."""
    n_kept: int = 64
    """Texts held out of training to be queries, and to standardise activations."""
    n_queries: int = 16
    """Of these, queries for each site and position in an evaluation."""
    n_samples: int = 8
    """Texts drawn for each query in an evaluation."""
    epsilon: float = EPSILON
    n_evaluations: int = 8
    """Over the whole training; each rebalances the sites."""
    save_every: int = 500
    """Steps between checkpoints, where there is a directory for them."""
    mixed_precision: Precision | None = None
    """None for what `accelerate launch` was told, else "no"."""
    column: str = "text"
    """Where a `datasets` row has its text."""
    name: str = "model"
    """The probed model's name, for messages."""

    def __post_init__(self) -> None:
        Closeness(self.epsilon)
        if self.mixed_precision is not None:
            check_choice("mixed_precision", self.mixed_precision, get_args(Precision))


@public
@old_keywords({"name": "options.name"}, options=TrainingOptions)
def train(
    model: TransformerLensModel,
    sites: Places,
    data: Data,
    *,
    budget: int = 200_000,
    positions: Position | list[Position] | None = None,
    out: str | Path | None = None,
    config: DecoderConfig | None = None,
    options: TrainingOptions | None = None,
    start: GPT2LMHeadModel | None = None,
    show_progress: bool = True,
) -> Decoder:
    """Train a decoder of one or several sites by cross-entropy on (text, activation) pairs.

    Texts are fresh each epoch where `data` makes them so. Of each, several sites and positions are drawn, the worse
    decoded ones more often; one activation in a hundred is replaced by the site's no-information activation, BOS's own
    (the mean of the site's where texts begin without BOS), which gives the unconditional baseline. Everything drawn
    follows from `options.drawing.seed`. Under `accelerate launch` or `torchrun` every process trains on its own part of
    each batch. The model, its hooks and flags, and all global random states are left as found.

    Args:
        model: the probed model, a HookedTransformer or TransformerBridge.
        sites: see `resolve_place`; a list for several.
        data: texts as the model reads them; see `text.data.Data`.
        budget: activations to train on, all processes together.
        positions: where activations are read, a rule or several (see `positions.Position`); None for any token.
        out: a directory for checkpoints and the decoder; a run that finds its own checkpoint there goes on from it.
        config: the decoder's shape.
        options: how it is trained.
        start: a language model that the decoder's weights start from, see `DecoderNetwork.start_from`; None for random
            ones.
        show_progress: a bar with the loss, in nats a token, and the mean in-preimage rate.

    Raises:
        ValueError: a site that the model lacks, no texts, an epoch without any, texts longer than n_ctx or without the
            positions, a loss that is not finite, or `out` holding a decoder or another run's checkpoint.
        TypeError: data that cannot be read again each epoch.
    """
    from tl_backward.inversion._trainer import every_rng_untouched

    check_model(model)
    chosen, shape = options or TrainingOptions(), config or DecoderConfig()
    if budget < chosen.drawing.batch_size:
        raise ValueError(
            f"Expected a budget of at least one batch ({chosen.drawing.batch_size} activations), got {budget}; "
            "raise it."
        )
    if out is not None and (Path(out) / DESCRIPTION).exists():
        raise ValueError(
            f"Expected a directory without a decoder, got {str(out)!r}, which holds one; load it with inversion.load, "
            "or choose another."
        )
    if chosen.mixed_precision == "fp16" and model.W_U.device.type == "cpu":
        raise ValueError("Expected a model on a GPU with mixed_precision 'fp16', got one on the CPU; use 'bf16' there.")
    rules = None if positions is None else positions if isinstance(positions, list) else [positions]
    with TemporaryDirectory() as scratch, every_rng_untouched():
        run = _Run(model, sites, data, rules, budget, shape, chosen, start)
        return run.train(Path(out or scratch), out is not None, show_progress)


class _Run:
    """One training, from the data to the decoder."""

    def __init__(
        self,
        model: TransformerLensModel,
        sites: Places,
        data: Data,
        positions: Sequence[Position] | None,
        budget: int,
        config: DecoderConfig,
        options: TrainingOptions,
        start: GPT2LMHeadModel | None,
    ) -> None:
        self.model, self.positions, self.options = model, positions, options
        self.reader = PlaceReader(model, sites)
        source = TextSource(data, n_held_out=options.n_kept, seed=options.drawing.seed, column=options.column)
        self.held_out = encode(model, source.held_out)
        bos = getattr(model.tokenizer, "bos_token_id", None)
        self.start = [bos] if bos is not None and bool((self.held_out.tokens[:, 0] == bos).all()) else []
        d_site = max(self.reader.widths.values())
        self.queries = read_queries(self.reader, self.held_out, positions, d_site)
        self.network = DecoderNetwork(
            config, n_sites=len(self.reader.places), d_site=d_site, d_vocab=vocabulary_size(model),
            n_ctx=model.cfg.n_ctx - len(self.start), seed=options.drawing.seed,
        ).to(model.W_U.device)  # fmt: skip
        if start is not None:
            self.network.start_from(start)
        self._standardise(d_site)
        self.stream = TrainingStream(
            model, self.reader.places, positions, source, options.drawing, self.network.null.cpu(), len(self.start)
        )
        self.steps = budget // options.drawing.batch_size
        self.every = max(1, self.steps // max(1, options.n_evaluations))
        self.history: list[dict[str, object]] = []
        self.identity = {
            "model": options.name,
            "vocabulary": vocabulary_digest(model),
            "sites": [str(site) for site in self.reader.places],
            "positions": None
            if positions is None
            else [
                rule if isinstance(rule, int | str) else getattr(rule, "__qualname__", "a function")
                for rule in positions
            ],
            "start": self.start,
            "probe": [self.held_out.row(index) for index in range(min(N_PROBED, len(self.held_out)))],
            "budget": budget,
            "config": asdict(config),
            "start_from": None if start is None else digest(dict(start.state_dict())),
            "options": {name: value for name, value in asdict(options).items() if name != "name"},
        }

    def _standardise(self, d_site: int) -> None:
        """Each site's mean, the root mean square around it, and the no-information activation."""
        q, network = self.queries, self.network
        null = None
        if self.start:
            first = torch.zeros(1, dtype=torch.long)
            read = self.reader(encode_rows(self.model, [self.start]).tokens, first, first, lengths=None)
            null = [widened(value[0], d_site) for value in read.values()]
        for index, width in enumerate(self.reader.widths.values()):
            values = q.activations[q.sites == index].to(network.mean)
            network.mean[index] = values.mean(0)
            variance = (values - network.mean[index]).square().sum(1).div(width).mean()
            network.scale[index] = variance.sqrt().clamp(min=1e-8)
            network.null[index] = network.mean[index] if null is None else null[index]

    def train(self, out: Path, keep: bool, show_progress: bool) -> Decoder:
        """All steps, evaluations and checkpoints; with `keep` they are written to `out`."""
        from transformers import TrainingArguments

        from tl_backward.inversion import _trainer

        o = self.options
        arguments = TrainingArguments(
            output_dir=str(out), max_steps=self.steps, learning_rate=o.learning_rate, lr_scheduler_type="cosine",
            warmup_steps=max(1, round(o.warmup * self.steps)), weight_decay=o.weight_decay, max_grad_norm=o.clip,
            adam_beta2=0.98, seed=o.drawing.seed, save_strategy="steps" if keep else "no", save_steps=o.save_every,
            logging_strategy="no", logging_nan_inf_filter=False, report_to=[], disable_tqdm=True,
            ignore_data_skip=True, remove_unused_columns=False, optim="adamw_torch_fused",
            use_cpu=self.network.mean.device.type == "cpu", ddp_find_unused_parameters=False,
            fp16=o.mixed_precision == "fp16", bf16=o.mixed_precision == "bf16",
        )  # fmt: skip
        checkpoint = _trainer.latest_checkpoint(out)
        if checkpoint is not None:
            self._resume(_trainer.read_run(checkpoint), checkpoint)
        self.trainer = trainer = _trainer.DecoderTrainer(
            self.network, arguments, self.stream, self._state, [_trainer.Watching(self._after)]
        )
        if o.drawing.batch_size % (arguments.world_size * o.drawing.pairs):
            raise ValueError(
                f"Expected batch_size to be a multiple of pairs x processes, got {o.drawing.batch_size} and "
                f"{o.drawing.pairs} x {arguments.world_size}; change one."
            )
        self.bar = tqdm(
            total=self.steps, initial=self.stream.first, desc="decoder", unit="step",
            disable=not (show_progress and arguments.process_index == 0),
        )  # fmt: skip
        with self.bar:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        self.network.eval()
        description = {**self.identity, "steps": self.steps, "history": self.history, "final_loss": trainer.losses[-1]}
        decoder = Decoder(self.model, self.network, tuple(self.reader.places), json.loads(json.dumps(description)))
        if keep and arguments.process_index == 0:
            decoder.save(out)
            _trainer.remove_checkpoints(out)
        trainer.accelerator.wait_for_everyone()
        return decoder

    def _after(self, step: int) -> None:
        self.bar.update(step - self.bar.n)
        if step % self.every == 0 or step == self.steps:
            rates = self._evaluate(step)
            recent = self.trainer.losses[-self.every :]
            loss = sum(recent) / len(recent)
            self.history.append({"step": step, "loss": loss, "inside": rates.tolist()})
            self.bar.set_postfix(loss=f"{loss:.3f}", inside=f"{rates.nanmean():.3f}")
            weights = (1 - rates.nan_to_num(0)).clamp(min=_LEAST_SHARE)
            if self.positions is None:  # any token: sites alone are rebalanced
                weights = weights.expand(-1, self.options.drawing.pairs)
            self.stream.history.append(Shares(step + LAG, weights / weights.mean()))

    def _evaluate(self, step: int) -> Float[Tensor, "site slot"]:
        """Shares inside of samples for the first texts held out of training, measured by the first process for all."""
        from accelerate.utils import broadcast_object_list

        shares: list[object] = [None]
        if self.trainer.args.process_index == 0:
            o = self.options
            self.network.eval()
            texts = self.held_out.select(torch.arange(min(o.n_queries, len(self.held_out))))
            queries = read_queries(self.reader, texts, self.positions, self.network.mean.shape[1])
            rates = decoder_rates(self.network, queries, self.start, n=o.n_samples, epsilon=o.epsilon, seed=step)
            shares = [rates.inside.tolist()]
        self.network.train()
        if self.trainer.args.world_size > 1:
            broadcast_object_list(shares)
        return torch.tensor(shares[0], dtype=torch.float64)

    def _state(self) -> dict[str, object]:
        shares = [{"first": each.first, "weights": each.weights.tolist()} for each in self.stream.history]
        return {"identity": self.identity, "history": self.history, "shares": shares}

    def _resume(self, run: dict, checkpoint: Path) -> None:
        check_run(checkpoint, run["identity"], self.identity)
        self.history = run["history"]
        self.stream.history = [
            Shares(each["first"], torch.tensor(each["weights"], dtype=torch.float64)) for each in run["shares"]
        ]
        self.stream.first = int(checkpoint.name.rpartition("-")[2])
