"""The decoder's network: a small GPT-2 that says which text an activation came from, p(x | z) (Huang et al. 2024)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal, Protocol, TypeAlias, cast, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from tl_backward._support.checks import check_at_least_one, check_choice
from tl_backward._support.public import public

Conditioning: TypeAlias = Literal["prefix", "cross"]

IGNORED = -100
BATCH_SIZE = 512
"""Texts drawn side by side."""


@public
@dataclass(frozen=True)
class DecoderConfig:
    """The shape of a decoder."""

    n_layers: int = 2
    d_model: int = 64
    n_heads: int = 4
    conditioning: Conditioning = "prefix"
    """How the text's tokens see the activation: "prefix", as vectors before them, or "cross", by cross-attention in
    every layer."""
    n_vectors: int = 4
    """How many vectors of the decoder's width an activation becomes."""
    d_hidden: int = 256
    """Width of the hidden layer of the MLP that makes them."""

    def __post_init__(self) -> None:
        """Refuse shapes that no decoder can have."""
        for name in ("n_layers", "d_model", "n_heads", "n_vectors", "d_hidden"):
            check_at_least_one(name, getattr(self, name), "correct it")
        if self.d_model % self.n_heads:
            raise ValueError(
                f"Expected d_model to be a multiple of n_heads, got {self.d_model} and {self.n_heads}; change one."
            )
        check_choice("conditioning", self.conditioning, get_args(Conditioning))


class _Generates(Protocol):
    """What every causal model of Hugging Face's can do, though its own types hide it."""

    def generate(self, **options: object) -> Tensor: ...


class DecoderNetwork(nn.Module):
    """Activation and site -> MLP -> a few vectors that a GPT-2 of Hugging Face's reads before, or beside, the text.

    Its vocabulary is the probed model's and one token more, END, which opens and closes every text.
    """

    mean: Tensor
    scale: Tensor
    null: Tensor

    def __init__(
        self, config: DecoderConfig, *, n_sites: int, d_site: int, d_vocab: int, n_ctx: int, seed: int
    ) -> None:
        """Draw the initial weights from the seed alone.

        Args:
            config: the decoder's own shape.
            n_sites: how many sites it is told about.
            d_site: width of the widest; activations of others are padded with zeros.
            d_vocab: of the probed model.
            n_ctx: most tokens of a text.
            seed: of the initial weights.
        """
        super().__init__()
        self.layout, self.end, self.n_ctx = config, d_vocab, n_ctx
        self.shape = {"n_sites": n_sites, "d_site": d_site, "d_vocab": d_vocab, "n_ctx": n_ctx}
        language = GPT2Config(
            vocab_size=d_vocab + 1,
            n_positions=(config.n_vectors if config.conditioning == "prefix" else 0) + n_ctx + 1,
            n_embd=config.d_model,
            n_layer=config.n_layers,
            n_head=config.n_heads,
            activation_function="gelu_pytorch_tanh",  # the same as gelu_new in one kernel instead of eight
            add_cross_attention=config.conditioning == "cross",
            initializer_range=config.d_model**-0.5,  # GPT-2's own 0.02 learns far too slowly at this width
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=d_vocab,
            eos_token_id=d_vocab,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.lm = GPT2LMHeadModel(language)
            self.read = nn.Parameter(torch.randn(n_sites, d_site, config.d_hidden) * d_site**-0.5)
            self.site = nn.Embedding(n_sites, config.d_hidden)
            self.mlp = nn.Sequential(
                nn.GELU(),
                nn.Linear(config.d_hidden, config.d_hidden),
                nn.GELU(),
                nn.Linear(config.d_hidden, config.n_vectors * config.d_model),
            )
        self.register_buffer("mean", torch.zeros(n_sites, d_site))
        self.register_buffer("scale", torch.ones(n_sites))
        self.register_buffer("null", torch.zeros(n_sites, d_site))

    @torch.no_grad()
    def start_from(self, language: GPT2LMHeadModel) -> None:
        """Take over the weights of a language model of the texts, such as the probed model's own.

        It knows already what texts look like, and what is left to learn is what z says about them. Its first position,
        BOS's, becomes that of END, which also takes BOS's embedding.

        Raises:
            ValueError: another width, depth, number of heads or vocabulary, or fewer positions than texts need.
        """
        own, given = self.lm.config, language.config
        for name in ("n_embd", "n_layer", "n_head"):
            if getattr(own, name) != getattr(given, name):
                raise ValueError(
                    f"Expected a language model of the decoder's shape to start from, got {name}="
                    f"{getattr(given, name)} for {getattr(own, name)}; change the decoder's config."
                )
        if given.vocab_size != self.end or given.n_positions < self.n_ctx:
            raise ValueError(
                f"Expected a language model of the probed model's {self.end} tokens and at least {self.n_ctx} "
                f"positions to start from, got {given.vocab_size} and {given.n_positions}; pass the probed model's own."
            )
        ours, theirs = self.lm.transformer, language.transformer
        ours.h.load_state_dict(theirs.h.state_dict(), strict=False)  # it has no cross-attention
        ours.ln_f.load_state_dict(theirs.ln_f.state_dict())
        ours.wte.weight[: self.end] = theirs.wte.weight
        ours.wte.weight[self.end] = theirs.wte.weight[given.bos_token_id or 0]
        first = len(ours.wpe.weight) - self.n_ctx - 1
        n = min(len(theirs.wpe.weight), self.n_ctx + 1)
        ours.wpe.weight[first : first + n] = theirs.wpe.weight[:n]

    def describe(self) -> dict[str, object]:
        """What `DecoderNetwork` is built from, as JSON."""
        return {"config": asdict(self.layout), **self.shape}

    def vectors(
        self, activations: Float[Tensor, "sample d_site"], sites: Int[Tensor, "sample"]
    ) -> Float[Tensor, "sample vector d_model"]:
        """What the language model is shown of each activation, standardised by its site's mean and scale."""
        z = (activations.to(self.mean) - self.mean[sites]) / self.scale[sites, None]
        hidden = self.site(sites)
        for index in range(len(self.read)):  # each site is read by a matrix of its own
            rows = (sites == index).nonzero()[:, 0]
            if len(rows):
                hidden = hidden.index_add(0, rows, (z[rows] @ self.read[index]).to(hidden.dtype))
        return self.mlp(hidden).unflatten(-1, (self.layout.n_vectors, self.layout.d_model))

    def logits(
        self,
        activations: Float[Tensor, "sample d_site"],
        sites: Int[Tensor, "sample"],
        tokens: Int[Tensor, "sample pos"],
    ) -> Float[Tensor, "sample pos+1 d_out"]:
        """Next-token logits after END and after each token of right-padded texts."""
        vectors = self.vectors(activations, sites)
        opened = F.pad(tokens, (1, 0), value=self.end)
        if self.layout.conditioning == "cross":
            return self.lm(input_ids=opened, encoder_hidden_states=vectors, use_cache=False).logits
        embedded = self.lm.transformer.wte(opened)
        shown = torch.cat([vectors.to(embedded.dtype), embedded], 1)
        hidden = self.lm.transformer(inputs_embeds=shown, use_cache=False).last_hidden_state
        return self.lm.lm_head(hidden[:, self.layout.n_vectors :])

    def forward(
        self,
        activations: Float[Tensor, "sample d_site"],
        sites: Int[Tensor, "sample"],
        tokens: Int[Tensor, "sample pos"],
        lengths: Int[Tensor, "sample"],
    ) -> dict[str, Float[Tensor, ""]]:
        """Mean cross-entropy, in nats a token, of the texts' tokens and of END after each."""
        logits = self.logits(activations, sites, tokens).float()
        return {"loss": F.cross_entropy(logits.flatten(0, 1), self.targets(tokens, lengths).flatten())}

    def targets(self, tokens: Int[Tensor, "sample pos"], lengths: Int[Tensor, "sample"]) -> Int[Tensor, "sample pos+1"]:
        """What `logits` are to predict: each token, END, then IGNORED."""
        at = torch.arange(tokens.shape[1] + 1, device=tokens.device)
        closed = F.pad(tokens, (0, 1), value=self.end)
        closed = closed.masked_fill(at == lengths[:, None], self.end)
        return closed.masked_fill(at > lengths[:, None], IGNORED)

    @torch.no_grad()
    def generate(
        self,
        activations: Float[Tensor, "sample d_site"],
        sites: Int[Tensor, "sample"],
        *,
        temperature: float,
        seed: int,
        use_cache: bool = True,
    ) -> tuple[Int[Tensor, "sample pos"], Int[Tensor, "sample"]]:
        """One text for each activation, drawn by Hugging Face's `generate` with its key-value cache.

        Returns:
            Tokens without END, 0 beyond each text's end, and the texts' lengths, 1 to n_ctx.
        """
        opened = torch.full((len(sites), 1), self.end, device=sites.device)
        vectors, crossed = self.vectors(activations, sites), self.layout.conditioning == "cross"
        options: dict[str, object] = {
            "max_new_tokens": self.n_ctx, "min_new_tokens": 1, "do_sample": True, "temperature": temperature,
            "top_k": 0, "use_cache": use_cache, "eos_token_id": self.end, "pad_token_id": self.end,
        }  # fmt: skip
        if crossed:
            options |= {"input_ids": opened, "encoder_hidden_states": vectors}
        else:
            options["inputs_embeds"] = torch.cat([vectors, self.lm.transformer.wte(opened)], 1)
        width = 1 if crossed else self.layout.n_vectors + 1
        options["attention_mask"] = torch.ones(len(sites), width, dtype=torch.long, device=sites.device)
        with torch.random.fork_rng(devices=[sites.device.index] if sites.device.type == "cuda" else []):
            torch.manual_seed(seed)
            made = cast(_Generates, self.lm).generate(**options)
        made = made[:, 1:] if crossed else made
        lengths = F.pad(made == self.end, (0, 1), value=True).int().argmax(1)
        real: Bool[Tensor, "sample pos"] = torch.arange(made.shape[1], device=made.device) < lengths[:, None]
        return made.masked_fill(~real, 0), lengths

    def draw(
        self,
        activations: Float[Tensor, "sample d_site"],
        sites: Int[Tensor, "sample"],
        start: Sequence[int],
        *,
        temperature: float = 1.0,
        seed: int,
    ) -> list[list[int]]:
        """One text for each activation as `generate` draws it, batch after batch, with the tokens `start` before it."""
        rows: list[list[int]] = []
        for number, part in enumerate(torch.arange(len(sites)).split(BATCH_SIZE)):
            z, site = activations[part].to(self.mean.device), sites[part].to(self.mean.device)
            drawn = self.generate(z, site, temperature=temperature, seed=seed * 1_000_003 + number)
            tokens, lengths = (each.tolist() for each in drawn)
            rows += [[*start, *row[:length]] for row, length in zip(tokens, lengths, strict=True)]
        return rows
