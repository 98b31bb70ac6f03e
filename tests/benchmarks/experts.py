"""Capture and lens of a mixture of experts (Qwen3-MoE's shape) as transformers computes it, against its bounds."""

import sys

import torch

import tl_backward as tlb
from tests.benchmarks.capture import activation_only, capture, factor_bytes, full_backward
from tests.benchmarks.measure import in_fresh_process, interleaved, peak_memory, row, word_tokenizer

D_VOCAB = 50257


def moe_bridge():
    """A TransformerBridge with random weights: 4 layers, 16 experts, 2 a token, in transformers' default implementation."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=D_VOCAB, hidden_size=768, num_hidden_layers=4, num_attention_heads=12, num_key_value_heads=4,
        head_dim=64, num_experts=16, num_experts_per_tok=2, moe_intermediate_size=768, intermediate_size=2048,
        decoder_sparse_step=1, max_position_embeddings=1024, architectures=["Qwen3MoeForCausalLM"],
    )  # fmt: skip
    inner = Qwen3MoeForCausalLM(config).eval()
    assert config._experts_implementation == "grouped_mm"
    return TransformerBridge.boot_transformers(
        "Qwen/Qwen3-30B-A3B", hf_model=inner, tokenizer=word_tokenizer(D_VOCAB), device="cpu"
    )


def some_tokens(pos: int = 128) -> torch.Tensor:
    """Random tokens [1, pos]."""
    return torch.randint(0, D_VOCAB, (1, pos), generator=torch.Generator().manual_seed(0))


def main() -> None:
    """Print the rows of experts."""
    model, tokens = moe_bridge(), some_tokens()
    times = interleaved(
        {
            "full": lambda: full_backward(model, tokens),
            "bound": lambda: activation_only(model, tokens),
            "ours": lambda: capture(model, tokens),
        }
    )
    seconds = ", ".join(f"{name} {value:.3f} s" for name, value in times.items())
    row("experts: capture / loss.backward(), 1 x 128 tokens", times["ours"] / times["full"], "<= 0.60", seconds)
    bound = times["ours"] / times["bound"]
    row("experts: capture / forward + activation-only backward, 1 x 128", bound, "<= 1.10", "")
    kinds = ("bound", "ours", "bytes")
    peaks = {kind: int(in_fresh_process("tests.benchmarks.experts", kind)) for kind in kinds}
    above = peaks["ours"] - peaks["bound"]
    detail = f"{above / 2**20:.0f} MiB above the bound, factors {peaks['bytes'] / 2**20:.0f} MiB"
    row("experts: peak memory above the bound / bytes of the factors", above / peaks["bytes"], "<= 1.15", detail)
    _lens(model)


def _lens(model) -> None:
    prompt, target = " ".join(f"w{97 * i}" for i in range(1, 128)), "w31"
    try:
        lens = tlb.backward_lens(model, prompt, target)
    except (ValueError, TypeError) as error:
        print(f"NOT MEASURED: backward_lens of a mixture of experts ({error})")
        return
    read = sum(each.norm.numel() for layers in lens.readouts().values() for each in layers.values())
    vectors = torch.randn(read, 768, generator=torch.Generator().manual_seed(0))
    loss, weights = tlb.target_loss(target), list(lens.cache.factors)
    times = interleaved(
        {
            "lens": lambda: tlb.backward_lens(model, prompt, target),
            "capture": lambda: tlb.run_with_gradient_cache(model, prompt, loss, weights=weights, names_filter=[]),
            "product": lambda: vectors @ model.W_U.detach(),
            "readout": lambda: tlb.readout(model, vectors),
        },
        rounds=5,
    )
    detail = ", ".join(f"{name} {value:.2f} s" for name, value in times.items()) + f"; {read} vectors"
    ratio = times["lens"] / (times["capture"] + times["product"])
    row("experts: backward_lens / (capture + readout product)", ratio, "<= 1.15", detail)


def peak(kind: str) -> None:
    """In a process of its own: print the peak memory of one way, or the bytes of the factors."""
    model, tokens = moe_bridge(), some_tokens()
    if kind == "bytes":
        print(factor_bytes(capture(model, tokens)[1]))
        return
    run = {"bound": activation_only, "ours": capture}[kind]
    run(model, tokens[:, :4])  # the first pass sets up buffers that stay
    print(peak_memory(lambda: run(model, tokens)))


if __name__ == "__main__":
    peak(*sys.argv[1:])
