"""The command `tl-backward watch`: fine-tune a copy of a model on your own cases, and show what that wrote."""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tl_backward.cli.generated import add_options
from tl_backward.cli.options import (
    Answer,
    Commands,
    add_command,
    add_model,
    aligned,
    check_save,
    load_asked,
    name_of,
    positive,
    quoted,
)

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from tl_backward._support.types import TransformerLensModel
    from tl_backward.editing import EditEffect
    from tl_backward.gradients.examples import Example
    from tl_backward.training import WatchResult

_SHOWN = 12  # cases whose answers are asked before and after
_ROWS = 8  # weights whose words are printed
_EXAMPLES = """  your model's folder on cases of your own (.csv or .jsonl with prompt and target, CounterFact's .json):
    tl-backward watch --model ./my-llama --data cases.csv --steps 200 --out wrote.html
  LoRA on the MLPs' matrices in place of all weights (needs PEFT), and the numbers kept:
    tl-backward watch --model ./my-llama --data cases.csv --lora --lora-rank 8 --save wrote.safetensors"""


def add_commands(commands: Commands) -> None:
    """Register the command `watch`."""
    add_command(
        commands, "watch", _watch, _add_options,
        description="Fine-tune MODEL, in memory, to say each case's target after its prompt (AdamW), watch it, and\n"
        "show what was written where, in words, and which tokens and cases contributed most. The model's\n"
        "own files stay as they are.",
        examples=_EXAMPLES,
    )  # fmt: skip


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--data", required=True, metavar="FILE", help="cases: .csv, .jsonl, or CounterFact's .json")
    parser.add_argument("--steps", type=positive, default=200, metavar="N", help="(default: 200)")
    parser.add_argument("--batch-size", type=positive, default=8, metavar="N", help="cases a step (default: 8)")
    parser.add_argument("--lr", type=float, default=1e-4, metavar="X", help="learning rate (default: 0.0001)")
    parser.add_argument("--lora", action="store_true", help="train low-rank adapters of the MLPs' matrices instead")
    parser.add_argument("--lora-rank", type=positive, default=8, metavar="N", help="of each adapter (default: 8)")
    add_options(parser, "tl_backward.training.watching.watch", "k", "rank", "n_examples", "seed")
    parser.add_argument("--save", metavar="FILE", help="keep the result (safetensors, for tlb.load_result)")


def _watch(arguments: argparse.Namespace) -> Answer:
    import torch

    from tl_backward import training
    from tl_backward.gradients.examples import encode_examples
    from tl_backward.text.cases import load_cases

    save = check_save(arguments, "the result")
    if not 0 < arguments.lr < float("inf"):
        raise ValueError(f"Expected --lr above 0, got {arguments.lr}.")
    cases = load_cases(arguments.data)
    model = _with_adapters(arguments) if arguments.lora else load_asked(arguments)
    examples = encode_examples(model, cases, None)
    if any(example.decoder is not None for example in examples):
        raise ValueError(
            "Expected a model that continues a text, got an encoder-decoder; train it in a loop of your own."
        )
    prompts = [case.prompt for case in cases[:_SHOWN]]
    before = _answers(model, prompts)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=arguments.lr, weight_decay=0.0)
    options = {name: getattr(arguments, name) for name in ("k", "rank", "n_examples", "seed")}
    with training.watch(model, optimizer=optimizer, **options) as watching:
        losses = _train(model, examples, optimizer, arguments)
    result, effects = watching.result(), _effects(model, prompts, before, arguments.k)
    targets = [int(example.target) for example in examples[:_SHOWN]]
    if save is not None:
        result.save(save)
    return Answer(
        lambda: _lines(result, effects, targets, losses, save),
        lambda: _data(result, effects, losses, arguments.model),
        lambda: import_module("tl_backward.render").watch_report(
            result, answers=effects, targets=targets, name=name_of(arguments.model)
        ),
    )


def _train(
    model: "TransformerLensModel",
    examples: "Sequence[Example]",
    optimizer: "Optimizer",
    arguments: argparse.Namespace,
) -> list[float]:
    """Steps on batches drawn without replacement; the mean loss of each, in nats."""
    import torch
    from tqdm.auto import trange

    from tl_backward.text.prompts import forward, pad

    generator, order, losses = torch.Generator().manual_seed(arguments.seed), [], []
    size = min(arguments.batch_size, len(examples))
    for _ in trange(arguments.steps, desc="train", unit="step", disable=not sys.stderr.isatty()):
        if len(order) < size:
            order = torch.randperm(len(examples), generator=generator).tolist()
        chosen, order = [examples[i] for i in order[:size]], order[size:]
        batch = pad(model, [example.tokens for example in chosen])
        logits, total = forward(model, batch), torch.zeros(())
        for row, example in enumerate(chosen):
            real = batch.real[row].bool()
            loss = example.loss(logits[row : row + 1, real], batch.tokens[row : row + 1, real])
            total = total + cast("Tensor", loss).cpu()
        optimizer.zero_grad()
        (total / size).backward()
        optimizer.step()
        losses.append(float(total.detach()) / size)
        if not all(parameter.isfinite().all() for parameter in optimizer.param_groups[0]["params"]):
            raise ValueError(
                f"Expected weights that stay finite, got NaN or inf after step {len(losses)} (loss {losses[-1]:.3g}); "
                f"choose a smaller --lr than {arguments.lr:g}."
            )
    return losses


def _answers(model: "TransformerLensModel", prompts: Sequence[str]) -> "list[Tensor]":
    """The next token's probabilities [d_vocab] after each prompt."""
    import torch

    from tl_backward.text.asked import asked_index, mask_token
    from tl_backward.text.prompts import encode_prompts, forward

    found = []
    for prompt in prompts:
        batch = encode_prompts(model, prompt)
        with torch.no_grad():
            logits = forward(model, batch)[0, asked_index(batch.rows()[0], mask_token(model))]
        found.append(logits.float().softmax(-1).cpu())
    return found


def _effects(
    model: "TransformerLensModel", prompts: Sequence[str], before: "Sequence[Tensor]", k: int
) -> "list[EditEffect]":
    from tl_backward.editing import EditEffect

    pairs = zip(prompts, before, _answers(model, prompts), strict=True)
    return [
        EditEffect(prompt, old, new, old.topk(k).indices, new.topk(k).indices, getattr(model, "tokenizer", None))
        for prompt, old, new in pairs
    ]


def _with_adapters(arguments: argparse.Namespace) -> "TransformerLensModel":
    """The model with PEFT's adapters on its MLPs' matrices, all else frozen.

    Raises:
        ImportError: PEFT is not installed.
        ValueError: a HookedTransformer, which has no modules to adapt; a model without matrices in MLPs.
    """
    try:
        peft: Any = import_module("peft")
    except ImportError as error:
        raise ImportError(
            "Expected PEFT for --lora, got none installed; `pip install peft`, or leave --lora out to train it all."
        ) from error
    if arguments.kind == "hooked":
        raise ValueError("Expected --kind bridge with --lora, got hooked; a HookedTransformer has nothing to adapt.")
    import torch
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tl_backward.model.shipped import check_not_misspelt, shipped_directory

    check_not_misspelt(arguments.model)
    folder = str(shipped_directory(arguments.model) or arguments.model)
    dtype = getattr(torch, arguments.dtype)
    inner = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    targets = [
        name
        for name, module in inner.named_modules()
        if ".mlp." in name and getattr(module, "weight", None) is not None
    ]
    if not targets:
        raise ValueError(f"Expected matrices in MLPs to adapt, got none in {type(inner).__name__}; leave out --lora.")
    torch.manual_seed(arguments.seed)  # of a process of its own
    config = peft.LoraConfig(r=arguments.lora_rank, lora_alpha=2 * arguments.lora_rank, target_modules=targets)
    wrapped = peft.get_peft_model(inner, config)
    model = TransformerBridge.boot_transformers(
        folder, hf_model=wrapped.base_model.model, tokenizer=AutoTokenizer.from_pretrained(folder),
        device=arguments.device, dtype=dtype,
    )  # fmt: skip
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    return cast("TransformerLensModel", model.eval())


def _lines(
    result: "WatchResult",
    effects: "Sequence[EditEffect]",
    targets: Sequence[int],
    losses: Sequence[float],
    save: Path | None,
) -> Iterator[str]:
    from tl_backward._support.sentences import count_text, percent
    from tl_backward.editing.summary import targets_met
    from tl_backward.render.watch_page import worded_weights

    yield result.summary()
    answers = [each.answers() for each in effects]
    changed = sum(old != new for old, new in answers)
    decimals = 2 if min(losses[0], losses[-1]) >= 0.1 else 4
    first, last = (f"{loss:.{decimals}f}" for loss in (losses[0], losses[-1]))
    yield (
        f"loss {first} -> {last} nats in {count_text(len(losses), 'step')}; {changed} of the first "
        f"{count_text(len(effects), 'prompt')} answered with another token than before; {targets_met(answers, targets)}"
    )
    rows = [("weight", "of all change", "answers to", "writes")]
    shares, (names, left_out) = result.shares(), worded_weights(result, _ROWS)
    for name in names:
        each = result.written[name]
        read = [
            side.top_tokens[0][:3] if side is not None and len(each.S) else [] for side in (each.imprint, each.shift)
        ]
        imprint, shift = (", ".join(map(quoted, tokens)) for tokens in read)
        rows.append((name, percent(shares[name]), imprint, shift))
    if len(rows) > 1 and any(shares.values()):
        yield "largest changes first, with the words of each one's first direction (none: it lies outside the stream):"
        yield from (f"  {line}" for line in aligned(rows))
        if left_out:
            yield f"  {left_out}"
    if save is not None:
        yield f"result: {save.resolve()}"


def _data(
    result: "WatchResult", effects: "Sequence[EditEffect]", losses: Sequence[float], model: str
) -> Mapping[str, object]:
    from tl_backward.text.token_strings import token_string

    asked = [
        {
            "prompt": each.prompt,
            **{
                side: token_string(each.tokenizer, int(getattr(each, f"top_{side}")[0])) for side in ("before", "after")
            },
        }
        for each in effects
    ]
    return {
        "model": model,
        "summary": result.summary(),
        "losses": list(losses),
        "answers": asked,
        "written": result.to_frame().to_dict("records"),
        "missing": dict(result.missing),
    }
