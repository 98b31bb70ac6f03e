"""Watching Hugging Face's Trainer: accumulation, clipping, checkpoints; results saved, loaded and merged."""

from pathlib import Path

import pytest
import torch
from models import D_VOCAB, bridge
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainerCallback, TrainingArguments

import tl_backward as tlb
from tl_backward.training import WatchCallback, difference, explained, load_watch, merge, watch


def data(n=24):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(3, D_VOCAB, (n, 7), generator=generator)
    return [{"input_ids": row, "labels": row} for row in rows]


class Saving(Trainer):
    """Keeps a Bridge's parameters by name: `save_pretrained` refuses them, since some are held under two."""

    def _save(self, output_dir=None, state_dict=None):
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        save_file({name: p.detach().clone() for name, p in self.model.named_parameters()}, f"{output_dir}/parameters")

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        saved = load_file(f"{resume_from_checkpoint}/parameters")
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(saved[name])


def trainer(model, folder, callbacks, **options):
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_grad_norm=0.5,
        optim="sgd",
        lr_scheduler_type="linear",
        learning_rate=0.1,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        seed=1,
        **{"num_train_epochs": 1, "save_strategy": "no", **options},
    )
    return Saving(model.original_model, arguments, train_dataset=data(), callbacks=callbacks)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_trainer_is_watched(family, tmp_path):
    """Clipped, accumulated, with a schedule: plain descent is explained to rounding, and nothing differs."""
    quiet = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0} if family == "gpt2" else {}
    plain, model, before = (bridge(family, dtype=torch.float32, **quiet) for _ in range(3))
    trainer(plain, tmp_path, []).train()
    watching = WatchCallback(model, n_examples=3)
    with pytest.raises(ValueError, match="Expected a training that has begun"):
        watching.result()
    trainer(model, tmp_path, [watching]).train()
    for one, two in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, two)
    result = watching.result()
    assert result.steps == 12 and all(len(norms) == 6 for norms in result.norms.values()) and not result.missing
    frame = explained(result, difference(before, model))
    assert (frame["share"] - 1).abs().max() < 1e-4
    assert all(float(norms.max()) <= 0.5 + 1e-6 for norms in result.norms.values()), "clipped"


class Struck(TrainerCallback):
    """Breaks a run off."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 4:
            raise KeyboardInterrupt


def test_a_trainer_is_resumed(tmp_path):
    """After an interrupt, from its last checkpoint: the watch ends as that of the whole run."""
    whole, first, second = (bridge("llama", dtype=torch.float32) for _ in range(3))
    expected = WatchCallback(whole)
    trainer(whole, tmp_path / "whole", [expected]).train()
    options = {"save_strategy": "steps", "save_steps": 3}
    watching = WatchCallback(first)
    with pytest.raises(KeyboardInterrupt):
        trainer(first, tmp_path / "parts", [watching, Struck()], **options).train()
    watching.close()
    again = WatchCallback(second)
    trainer(second, tmp_path / "parts", [again], **options).train(resume_from_checkpoint=True)
    for one, two in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, two)
    found, wanted = again.result(), expected.result()
    assert found.steps == wanted.steps == 12
    for name in wanted.weights:
        assert torch.equal(found.sums[name].dense(), wanted.sums[name].dense())
        assert torch.equal(found.norms[name], wanted.norms[name]) and found.tokens[name] == wanted.tokens[name]


def results(n=2):
    found = []
    for part in range(n):
        model = bridge("gpt2")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        rows = torch.stack([each["input_ids"] for each in data()])
        halves = rows.chunk(n)
        with watch(model, "W_out", optimizer=optimizer, n_examples=4) as w:
            for step in range(3):
                tokens = halves[part][4 * step : 4 * step + 4]
                model(tokens, return_type="loss").backward()
                own = [p.grad.clone() for p in model.parameters() if p.grad is not None]
                others = [half[4 * step : 4 * step + 4] for half in halves]
                optimizer.zero_grad()
                w._passes.close()  # what other processes compute is not this one's
                sum(model(each, return_type="loss") for each in others).div(n).backward()
                w._passes.open()
                assert own
                optimizer.step()
                optimizer.zero_grad()
        found.append(w.result())
    return found


def test_processes_are_merged():
    """Two that read the same mean gradient and saw different examples."""
    parts = results()
    joined = merge(*parts)
    name = joined.weights[0]
    rows = sorted((each for part in parts for each in part.tokens[name]), reverse=True)[:4]
    assert joined.tokens[name] == tuple(rows)
    torch.testing.assert_close(joined.sums[name].dense(), parts[1].sums[name].dense())
    other = bridge("gpt2")
    with watch(other, "W_out", n_examples=4) as w:
        for _ in range(3):
            other(data()[0]["input_ids"][None], return_type="loss").backward()
    with pytest.raises(ValueError, match="one training"):
        merge(parts[0], w.result())
    with pytest.raises(ValueError, match="got none"):
        merge()


def test_saved_and_loaded(tmp_path):
    result = results(1)[0]
    path = result.save(tmp_path / "watch.safetensors")
    back = load_watch(path, tokenizer=result.tokenizer)
    assert back.summary() == result.summary() and back.missing == result.missing and back.about == result.about
    assert back.to_frame().equals(result.to_frame()) and back.to_frame("gradient").equals(result.to_frame("gradient"))
    for name in result.weights:
        assert back.tokens[name] == result.tokens[name] and back.examples[name] == result.examples[name]
        assert torch.equal(back.norms[name], result.norms[name])
        assert torch.equal(back.sums[name].dense(), result.sums[name].dense())
        assert back.contributions(name).equals(result.contributions(name))
    assert "[" in str(load_watch(path).to_frame()["shift"][0])
    with pytest.raises(ValueError, match="written by WatchResult.save"):
        tlb.zoo.load("facts")
        sweep = tlb.sweep(tlb.zoo.load("facts"), tlb.zoo.edit_cases("test")[:1], control=None, show_progress=False)
        load_watch(sweep.save(tmp_path / "sweep.safetensors"))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError):
        load_watch(path)
