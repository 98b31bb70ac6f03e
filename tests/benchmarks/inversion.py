"""Training a decoder, and drawing and verifying samples, against bare transformers on the same network."""

from itertools import islice

import torch

from tests.benchmarks.measure import interleaved, row
from tests.benchmarks.sweeps import one_thread
from tl_backward import zoo
from tl_backward.inversion import shipped
from tl_backward.inversion.stream import BLOCK, Drawing
from tl_backward.inversion.training import TrainingOptions, train
from tl_backward.text.encoded import encode

N_STEPS, N_SAMPLES, WARM = 100, 1000, 20
RECIPE = shipped.RECIPES["counting"]


def training() -> None:
    """CPU seconds of further steps: two budgets' difference, so that neither start nor evaluation counts.

    A bare loop over batches that are there already does not read the probed model, which is part of training: the second
    row adds bare passes over as many texts, in the same batches.
    """
    model, batch_size = zoo.load("counting"), Drawing().batch_size
    options = TrainingOptions(n_evaluations=1, n_queries=2, n_samples=1)
    made = {}

    def ours(steps: int):
        made["decoder"] = train(
            model, list(RECIPE.sites), RECIPE.data(), budget=steps * batch_size, positions=list(RECIPE.positions),
            config=RECIPE.config, options=options, show_progress=False,
        )  # fmt: skip

    ours(WARM)
    batches = list(islice(_stream(model, options), WARM + N_STEPS))
    network = made["decoder"].network

    def bare(steps: int):
        network.train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        for batch in batches[:steps]:
            network(**batch)["loss"].backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()

    per_batch = batch_size // options.drawing.pairs
    texts = encode(model, list(islice(RECIPE.data()(1), N_STEPS * per_batch)))
    blocks = [texts.select(part).tokens for part in texts.lengths.argsort(stable=True).split(BLOCK * per_batch)]

    def read():
        with torch.no_grad():
            for tokens in blocks:
                model(tokens, stop_at_layer=2)

    with one_thread():
        times = interleaved(
            {
                "read": read,
                "ours, long": lambda: ours(WARM + N_STEPS),
                "ours, short": lambda: ours(WARM),
                "bare, long": lambda: bare(WARM + N_STEPS),
                "bare, short": lambda: bare(WARM),
            },
            rounds=2,
        )
    seconds = {who: times[f"{who}, long"] - times[f"{who}, short"] for who in ("ours", "bare")}
    per_second = {who: N_STEPS * batch_size / value for who, value in seconds.items()}
    share = times["read"] / seconds["bare"]
    detail = ", ".join(f"{who} {value:.0f} samples/s" for who, value in per_second.items())
    detail += f"; bare passes of the probed model are {share:.0%} of the bare loop"
    row("decoder training / bare loop of the same decoder", seconds["bare"] / seconds["ours"], ">= 0.95", detail)
    both = (seconds["bare"] + times["read"]) / seconds["ours"]
    row("decoder training / bare loop and bare passes of the probed model", both, ">= 0.95", "")


def _stream(model, options):
    """Batches as `train` draws them."""
    from tl_backward.activations import PlaceReader
    from tl_backward.inversion.stream import TrainingStream
    from tl_backward.text.data import TextSource

    reader, source = PlaceReader(model, list(RECIPE.sites)), TextSource(RECIPE.data(), n_held_out=options.n_kept)
    null = torch.zeros(len(reader.places), max(reader.widths.values()))
    return TrainingStream(model, reader.places, list(RECIPE.positions), source, options.drawing, null, 1)


def sampling() -> None:
    """A preimage, every sample judged by the probed model, against `generate` alone."""
    decoder = shipped.load("counting")
    query = {"site": "blocks.1.hook_resid_mid", "position": -1}
    network = decoder.network
    z = decoder.sample("vvzccvczvvvzvcvc|v:", 1, **query)  # warm
    vectors = network.vectors(torch.zeros(N_SAMPLES, network.mean.shape[1]), torch.zeros(N_SAMPLES, dtype=torch.long))
    opened = network.lm.transformer.wte(torch.full((N_SAMPLES, 1), network.end))
    shown = torch.cat([vectors, opened], 1).detach()
    del z

    def ours():
        decoder.preimage("vvzccvczvvvzvcvc|v:", n=N_SAMPLES, show_progress=False, **query)

    def bare():
        with torch.random.fork_rng():
            network.lm.generate(
                inputs_embeds=shown, attention_mask=torch.ones(shown.shape[:2], dtype=torch.long), do_sample=True,
                top_k=0, max_new_tokens=network.n_ctx, eos_token_id=network.end, pad_token_id=network.end,
            )  # fmt: skip

    with one_thread():
        times = interleaved({"ours": ours, "bare": bare}, rounds=7)
    detail = ", ".join(f"{who} {N_SAMPLES / seconds:.0f} samples/s" for who, seconds in times.items())
    row("samples drawn and verified / bare generate()", times["bare"] / times["ours"], ">= 0.85", detail)


def main() -> None:
    """Print the rows."""
    training()
    sampling()


if __name__ == "__main__":
    main()
