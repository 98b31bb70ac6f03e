"""Every notebook runs from top to bottom in a fresh kernel, in silence, and shows the figures that its text speaks of."""

import json
import re
import tomllib
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LIMIT = 700_000  # bytes of a saved notebook

# What the text claims, asked of the notebook's own variables once it has run.
CLAIMS = {
    "0_quick_start": [
        "lens.answer == ' Graz'",
        "words['tokens a step moves away from'][0] == ' Graz'",
        "words['tokens a step moves toward'][0] == ' Oslo'",
        "(ranks['target, trained'] == 424).all() and (ranks['target, untrained'] == 424).all() and model.cfg.d_vocab == 425",
        "ranks['old answer, trained'].iloc[-1] == 0 and ranks['old answer, untrained'].iloc[-1] > 20",
        "already['loss for Graz'] < 0.2 < already['loss for Oslo'] and already['gradient norms, Graz / Oslo'] < 0.2",
        "largest['last layer, all but the last token'] == 0 < largest['first layer'][1] < largest['first layer, last token']",
        "found[1] == found[2] and example.subject != 'Anna Berg'",
    ],
    "1_gradients_are_outer_products": [
        "largest_difference < 1e-14",
        "differences.max() < 1e-5 and len(differences) == 24",
        "ranks['W_out'].tolist() == [8, 8, 8, 1] and ranks['W_Q'].tolist() == [7, 7, 7, 1]",
        "spectrum[0] == 1 and spectrum[2] > 0.4 > spectrum[3]",
        "0.5 < share < 0.9",
        "cosines['paraphrase'] > 0.6 > 0.4 > cosines['another person']",
        "added_up > whole",
        "0.1 < left_out < 0.5",
        "inputs_are_ones",
    ],
    "2_backward_lens": [
        "(sweep.interval('target_rank').mean[1:] == 424).all() and (sweep.control.interval('target_rank').mean == 424).all()",
        "sweep.interval('answer_rank').mean[-1] < 8 and sweep.control.interval('answer_rank').low[-1] > 100",
        "0.4 < (sweep.values['answer_rank'][:, -1] == 0).double().mean() < 0.7",
        "frame.query(\"quantity == 'share' and layer == 0 and segment == 'subject'\")['low'].item() > 0.4",
        "frame.query(\"quantity == 'share' and layer == 0 and segment == 'subject'\")['control_high'].item() < 0.2",
        "frame.query(\"quantity == 'share' and layer == 3 and segment == 'last'\")[['mean', 'control_mean']].eq(1).all(axis=None)",
        "0.4 < top['trained'].iloc[-1] < 0.7 and top['trained'].iloc[:-1].max() < 0.2 and (top['untrained'] == 0).all()",
        "60 > sweep.interval('answer_rank').mean[0] > 50 and sweep.interval('answer_rank').mean.diff().max() < 0",
        "trained < 8 < 100 < untrained",
        "similar.pairs(3)['cosine'].between(0.1, 0.4).all() and all(a[-6:] == b[-6:] for a, b in zip(*map(similar.pairs(2).get, ['example_a', 'example_b']), strict=True))",
    ],
    "3_editing": [
        "restored",
        "effect._word(effect.top_before[0]) == ' Graz' and effect._word(effect.top_after[0]) == ' Oslo'",
        "scores.efficacy == 1",
        "comparison.to_frame().set_index(['method', 'metric'])['mean']['forward-pass shift', 'efficacy'] >= 0.85",
        "comparison.to_frame().set_index(['method', 'metric'])['mean']['forward-pass shift', 'portability'] < 0.1",
        "comparison.to_frame().set_index(['method', 'metric'])['mean']['5 gradient steps', 'score'] >= 0.85",
        "grid.shape == (4, 7) and grid[:, -1].min() > 0.9",
        "means['efficacy'] == 1 and means['neighbourhood'] < 0.2 and means['relations'] < 0.2",
        "both == ['Oslo', 'Cairo']",
        "'nothing to edit' in message",
        "size < model.W_out[2].numel() * 4 / 50",
    ],
    "4_weights_in_words": [
        "len({' employer', ' job', ' company', ' pet'} & set(values[neuron].top_tokens[0])) >= 3",
        "0.15 < above < 0.25",
        "means['aligned'] > means['shuffled'] + 0.01 and means['gaussian'] > 0.1",
        "exact",
        "target in tlb.project_parameter(model, change[3][most], k=6).top_tokens[0][:2]",
        "all(0.1 < each < 0.3 for each in shares.values())",
        "overlap.aligned.mean() > 2 * overlap.shuffled.mean()",
    ],
    "5_two_models_compared": [
        "all(recalled(recipe, folder) > 0.9 for recipe in recipes.values())",
        "(cka['gelu'] - 1).abs().max() < 1e-6 and (cka['gelu, seed 1'] > cka['solu']).all() and (cka['solu'] > cka['untrained'] + 0.1).all()",
        "0 < cka['untrained'].min() and cka['untrained'].max() < 0.5",
        "procrustes['gelu'].max() < 1e-3 and procrustes['gelu, seed 1'].min() > 0.3 and procrustes['untrained'].min() > 0.9",
        "penalties['gelu, seed 1 -> gelu'] > penalties['solu -> gelu'] > penalties['gelu -> solu'] > penalties['gelu -> gelu']",
        "abs(penalties['gelu -> gelu']) < 0.01 and penalties['untrained -> gelu'] > 1",
        "said == own",
        "before_after[0] > 0.7 and before_after[1] < 0.3",
        "abs(itself.values[0, 0, 2]) < 0.9 and len(cka_without) == 3 and abs(cka_without[1] - before_after[0]) > 0.02",
        "n_metrics > 5 and len(distances.names) == 12",
    ],
    "6_what_an_activation_knows": [
        "answer == '8'",
        "rates['decoder'] > 0.3 and rates['texts drawn at random'] < 0.01",
        "table.loc['count', ['decoder', 'search']].min() > 0.97 and table.loc['query letter', ['decoder', 'search']].min() > 0.97",
        "table.loc['the set of letters', 'decoder'] > 0.9 and 0.25 < table.loc['the set of letters', 'search'] < 0.75",
        "searched.diagnostics.share_inside > 0.8",
        "exact.features[3]['left 10s'].rate.value == exact.features[3]['right 10s'].rate.value == 1 and exact.preimages[3].inside.sum() == 900",
        "exact.features[1]['left 100s'].rate.value == 0.5 and exact.features[0]['right 100s'].rate.value > 0.9",
        "max(exact.features[head][f'{side} 1s'].rate.value for head in range(4) for side in ('left', 'right')) < 0.15",
        "exact.preimages[1].inside.sum() == 20_000",
        "check.kl[check.inside].mean() < 0.01 < 1 < check.kl[~check.inside].mean() and check.kept[check.inside].all()",
        "letter.rate.value > 0.97",
        "temperatures[2.0][0] < temperatures[1.0][0]",
        "second.features[0]['answer 100s'].rate.value > 0.98 and second.features[1]['answer 10s'].rate.value > 0.98",
    ],
    "7_your_own_model": [
        "'Bridge' in type(model).__name__ and not sites.missing and len(sites) >= 60",
        "0.5 < cosine < 0.99 and gone",
        "all(abs(a - b) < 1e-3 for a, b in zip(patched_norms[0], clean_norms))",
        "patched_norms[2][:2] == [0, 0] and abs(patched_norms[2][2] - clean_norms[2]) < 1e-3",
        "attribution[0, 1:3].sum() > 1 > attribution[0, 3:].abs().max() and attribution[3].argmax() == attribution.shape[1] - 1",
        "same and untouched and hooks_left == 0",
        "float(patched_value - value) > 3 * float(attribution[0, name].sum()) > 0",
        "(account['captured'] == account['elements']).sum() == sum(account['reason'] == '') >= 60",
        "recalled == len(told) == 144 and moe_lens.answer == ' Graz'",
        "[int((each.share > 0).sum()) for each in moe_lens.experts.values()][1] == 2 and set(moe_lens.kinds.values()) == {'attention, experts'}",
        "(lambda last: torch.allclose(*last.router_norm[last.share > 0]) and abs(last.routing_weight.nansum() - 1) < 1e-5)(moe_lens.experts[1])",
        "same_norms and rows_each == [2] * 8 and set(moe_account['reason']) == {'', 'not asked for (choose with weights=...)'}",
        "bert_lens.tokens[at] == '[MASK]' and bert_lens.answer == 'Graz' and min(target_ranks) > len(ids) - 20 and answer_ranks[0] > 3",
        "'got a prompt without one' in refusal",
    ],
    "8_what_a_training_wrote": [
        "answers == {'before': ' Graz', 'trained': ' Oslo', 'trained without the five': ' Graz'} and len(told) == 5",
        "prompt not in told and len(data) == 50",
        "[words[0] for words in writes[writes.index % 2 == 0]['shift']] == [' Oslo', ' Oslo']",
        "min(each['share'].sum() for each in [change.to_frame().query(\"weight == 'blocks.3.mlp.W_in'\")]) > 0.5",
        "change.noise.changes['blocks.3.mlp.W_in'].share < 0.2 < 0.4 < change.control.changes['blocks.3.mlp.W_in'].share",
        "top == planted and n_early >= 4 and found.stands_out[0]",
        "says(adapted) == ' Oslo' and adapter.weights == ('blocks.3.mlp.out.W_lora_A', 'blocks.3.mlp.out.W_lora_B')",
        "adapter.written['blocks.3.mlp.out.W_lora_B'].shift.top_tokens[0][0] == ' Oslo' and adapter.written['blocks.3.mlp.out.W_lora_A'].imprint is None",
        "told_by['share'].mean() < 0.1 < 0.5 < told_by['cosine'].mean() and 0 < share_planted < 0.5",
    ],
}


def read(path):
    return nbformat.read(path, as_version=4)


def test_each_has_claims():
    assert [path.stem for path in NOTEBOOKS] == sorted(CLAIMS) and NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_and_keeps_its_word(path, monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = read(path)
    shown = {cell.id for cell in notebook.cells if cell.get("outputs")}
    checks = "\n".join(f"assert {claim}, {claim!r}" for claim in CLAIMS[path.stem])
    notebook.cells.append(nbformat.v4.new_code_cell(checks))
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()  # raises on any error
    for cell in notebook.cells[:-1]:
        said = [
            output.text
            for output in cell.get("outputs", [])
            if output.output_type == "stream" and output.name == "stderr"
        ]
        assert not said, f"{cell.id} warned: {said}"
        assert (cell.id in shown) == bool(kept(cell)), f"{cell.id}: the saved outputs are of another run"


def kept(cell):
    """Outputs that stay: a progress bar is gone when its cell ends."""
    return [o for o in cell.get("outputs", []) if "application/vnd.jupyter.widget-view+json" not in o.get("data", {})]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_a_lesson(path):
    """A Colab badge, an install cell, the paper and section, three exercises with hidden solutions, small outputs."""
    notebook, name = read(path), path.name
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    slug = project["urls"]["Repository"].removeprefix("https://github.com/")
    first = notebook.cells[0].source
    assert f"https://colab.research.google.com/github/{slug}/blob/main/notebooks/{name}" in first
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert re.search(r"et\s+al\.?\s+\d{4}|\(\w[\w ,]+ \d{4}|\w+ \d{4}, section", prose)
    assert "section" in prose or name.startswith("7")
    installs = [cell for cell in notebook.cells if "%pip install" in cell.source]
    assert len(installs) == 1 and f"%pip install -q {project['name']}" in installs[0].source
    solutions = [cell for cell in notebook.cells if "solution" in cell.metadata.get("tags", [])]
    assert len(solutions) == 3 == len(re.findall(r"\*\*[123]\.\*\*", prose))
    assert all(set(cell.metadata["jupyter"].values()) == {True} and cell.outputs for cell in solutions)
    assert path.stat().st_size < LIMIT
    assert "CircuitsVis" not in path.read_text()
    assert not re.search(r"/(?:home|root|work|tmp|usr)/", json.dumps([cell.get("outputs") for cell in notebook.cells]))
