"""backward_lens against a full pass of a small model, and TransformerLens 3.9's own BackwardLens on a GPT-2-shape bridge."""

import torch

import tl_backward as tlb
from tests.benchmarks.capture import full_backward
from tests.benchmarks.measure import gpt2_bridge, interleaved, row


def main() -> None:
    """Print the rows of the lens."""
    for kind in ("hooked", "bridge"):
        _of_facts(kind)
    try:
        from transformer_lens.tools.analysis import BackwardLens
    except ImportError:
        print("TransformerLens's own BackwardLens is not in this version: not measured")
        return
    model = gpt2_bridge()
    prompt, target, layers = " ".join(f"w{97 * i}" for i in range(1, 32)), "w31", list(range(12))
    theirs, ours = BackwardLens(model).analyze(prompt, target, layers), tlb.backward_lens(model, prompt, target)
    assert ours.token_ids.tolist() == theirs.prompt_token_ids.tolist() and len(ours.tokens) == 32
    for layer, result in zip(layers, theirs.layers, strict=True):
        for read, matrix in (
            (ours.imprint[layer], result.input_projection),
            (ours.shift[layer], result.output_projection),
        ):
            real = ~read.is_zero
            assert torch.equal(real, ~matrix.zero_norm_mask)
            assert torch.equal(read.top_ids[real], matrix.top_ranking.indices[real])
            assert torch.equal(read.bottom_ids[real], matrix.bottom_ranking.indices[real])
        factors = ours.cache.factors["W_out", layer]
        reference = result.output_projection.factors
        for one, other in (
            (factors.inputs[0], reference.forward_inputs),
            (factors.deltas[0], reference.output_gradients),
        ):
            assert float((one - other).abs().max()) <= 1e-5 * float(other.abs().max())
    times = interleaved(
        {
            "theirs": lambda: BackwardLens(model).analyze(prompt, target, layers),
            "ours": lambda: tlb.backward_lens(model, prompt, target),
            "capture alone": lambda: tlb.run_with_gradient_cache(
                model, prompt, tlb.target_loss(target), weights=["W_in", "W_out"], names_filter=[]
            ),
            "with attention": lambda: tlb.backward_lens(model, prompt, target, attention=True),
        },
        rounds=3,
    )
    detail = ", ".join(f"{name} {value:.2f} s" for name, value in times.items()) + "; factors and top-k equal"
    row("TransformerLens's BackwardLens.analyze / backward_lens", times["theirs"] / times["ours"], ">= 3.3", detail)
    vectors = torch.cat([ours.cache.factors["W_out", layer].inputs[0, :, :768] for layer in layers] * 2)
    bound = interleaved(
        {"readout": lambda: tlb.readout(model, vectors), "gemm": lambda: vectors @ model.W_U.detach()}, rounds=5
    )
    row("readout of 768 vectors, k=10 / its bare matrix product", bound["readout"] / bound["gemm"], "", "")


def _of_facts(kind: str) -> None:
    model, prompt = tlb.zoo.load("facts", kind=kind), "Anna Berg lives in the city of"
    tokens = model.to_tokens(prompt)
    times = interleaved(
        {"full": lambda: full_backward(model, tokens), "lens": lambda: tlb.backward_lens(model, prompt, " Oslo")},
        rounds=101,
    )
    milliseconds = ", ".join(f"{name} {1000 * value:.2f} ms" for name, value in times.items())
    row(
        f"facts, {kind}: backward_lens / loss.backward(), 1 x 8 tokens",
        times["lens"] / times["full"],
        "<= 1.4",
        milliseconds,
    )
