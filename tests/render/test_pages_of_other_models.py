"""Pages say what is true of models that are no dense GPT: encoders and decoders, experts, mixers, masks, mixed layers."""

import functools
import re

import pytest
from cli.test_commands import run
from lens.test_lens_of_blocks import jamba, mixtral
from model.test_masked_models import PROMPT, BertForMaskedLM, boot, word_pieces
from models import HAS_HOOKED_TRANSFORMER, bridge, build, hooked, worlds
from shared import stories
from tokenizers import decoders

import tl_backward as tlb
from tests.architectures import ROWS
from tests.architectures import build as architectures
from tl_backward.embedding_space.atlas import atlas_places, left_out_of_atlas
from tl_backward.render import atlas, lens_report, params_report, pattern_names
from tl_backward.render.key_figures import PromptView, joined, key_figures, token_gaps

from .reading import read

quiet = {"show_progress": False}


def text_of(page):
    html = re.sub(r"<(script|style)>.*?</\1>", "", page.to_html(), flags=re.DOTALL)
    return re.sub(r"\s+", " ", " ".join(read(html).texts))


@functools.cache
def tiny(name):
    try:
        return architectures.bridge(ROWS[name])
    except Exception as error:
        pytest.skip(f"NOT TESTED: this TransformerLens cannot boot a {name}: {type(error).__name__}: {error}")


def page_of(model, prompt="w5 w6 w7 w8", target="w9", **options):
    lens = tlb.backward_lens(model, prompt, target, k=3, **{"control": "random_init"} | options)
    return lens, text_of(lens_report(lens, model))


@pytest.mark.parametrize("name", ["BartForConditionalGeneration", "T5ForConditionalGeneration"])
def test_what_an_encoder_read_is_in_the_question(name):
    if name.startswith("T5") and HAS_HOOKED_TRANSFORMER:
        pytest.skip("NOT TESTED: TransformerLens 3 cannot run a T5 of this transformers")
    model = tiny(name)
    _, shown = page_of(model)
    start = (
        "<pad>"
        if name.startswith("T5")
        else model.tokenizer.decode([model.original_model.config.decoder_start_token_id])
    )
    assert re.search(rf"The encoder reads (<bos> )?w5 w6 w7 w8 ; after {re.escape(start)} the decoder says", shown)
    assert "The decoder's blocks are read here, not the encoder's" in shown
    assert "each part of what the decoder reads" in shown and "each part of the prompt" not in shown
    _, shown = page_of(model, ["w5 w6 w7 w8", "w10"], ["w9", "w4"])
    assert re.search(r"The encoder reads (<bos> )?w5 w6 w7 w8 ;", shown)
    lens = tlb.backward_lens(model, ["w5 w6 w7 w8", "w10"], ["w9", "w4"], k=3)
    assert re.search(r"The encoder reads (<bos> )?w10 ;", text_of(lens_report(lens, example=1)))  # without its padding
    _, shown = page_of(model, target="w9 w10")
    assert "is appended to what the decoder reads" in shown and "appended to the prompt" not in shown


@pytest.mark.parametrize("world", worlds())
def test_decoders_alone_have_no_encoder(world):
    _, shown = page_of(build(world))
    assert "After <bos> w5 w6 w7 w8 the model says" in shown and "ncoder" not in shown
    _, shown = page_of(build(world), target="w9 w10 w11")
    assert (
        "After <bos> w5 w6 w7 w8 the model says" in shown
        and "'w9 w10', which is all of it but the last one, is appended to the prompt" in shown
    )


def test_experts_and_their_router_are_named():
    model = mixtral()
    for lens, shown in (page_of(model), page_of(model, attention=True)):
        assert "MLPs are gated" not in shown and "W_in" not in shown and "W_out" not in shown
        assert "Imprint: what the experts and their router W_gate would take in" in shown
        assert "Shift: what the experts would write" in shown and "where the experts' sum enters the stream" in shown
        assert lens.sources["shift"] == {layer: f"blocks.{layer}.mlp.hook_out" for layer in (0, 1)}
    assert "Imprint in attention: what W_V would take in" in shown


def test_mixers_are_named():
    lens, shown = page_of(tiny("MambaForCausalLM"))
    assert "Imprint: what the mixer's W_in_proj would take in" in shown
    assert "Shift: what the mixer's W_out_proj would write" in shown
    assert not re.search(r"W_in\b|W_out\b|FF1|FF2", shown)


def test_mixed_layers_are_named_one_by_one():
    lens, shown = page_of(jamba(), attention=True)
    assert lens.kinds == {0: "mixer, MLP", 1: "attention, experts"}
    assert "Imprint: what each block would take in" in shown and "Shift: what each block would write" in shown
    router = lens.sources["imprint"][1].rsplit(".", 1)[1]
    assert f"Here: W_in in layer 0; the experts and their router {router} in layer 1." in shown
    assert "Here: W_out in layer 0; the experts in layer 1." in shown
    assert "Imprint between tokens: what each mixing part would take in" in shown
    assert "Here: the mixer's W_in_proj in layer 0; W_V in layer 1." in shown
    assert "The MLPs are gated: W_gate reads the same inputs." in shown


def test_an_mlp_is_called_by_its_own_name():
    """RecurrentGemma's are up_proj and down_proj."""
    _, shown = page_of(tiny("RecurrentGemmaForCausalLM"))
    assert "Imprint: what W_up_proj would take in" in shown and "Shift: what W_down_proj would write" in shown


@pytest.mark.parametrize("masked", [True, False])
def test_a_mask_is_no_last_token(masked):
    model = boot(BertForMaskedLM)
    prompt, place = (PROMPT, None) if masked else ("Paris is the capital of France.", 3)
    lens, shown = page_of(
        model,
        prompt,
        " france",
        control="random_init",
        names_filter=pattern_names(model),
        **({} if masked else {"position": place}),
    )
    after = (
        "after which the answer",
        "after which an answer",
        "before the last token",
        "attends to each token up to it",
    )
    assert not [said for said in after if said in shown]
    view = PromptView(lens)
    assert view.asks == ("mask" if masked else "place")
    assert ("In the last layer only the mask can matter" in shown) == masked
    assert ('"last" is the mask' in shown) == masked and "each token (a row) attends to each token (a column)" in shown
    assert ("where the old answer belongs" in shown) == (not masked)
    assert ("The old answer need not be at the top of a shift" in shown) == (masked and lens.answer != lens.target)
    assert "reach the very top of the shift" not in shown or not masked
    (figure,) = [each for each in key_figures(view) if each.name.startswith("largest VJP norms at other tokens than")]
    norms = lens.stacked("norm").sum(0)
    norms[view.asked] = -1
    assert figure.value.endswith(f"(token {int(norms.argmax())})")


def test_word_pieces_have_gaps():
    pieces = word_pieces()
    pieces.backend_tokenizer.decoder = decoders.WordPiece()
    _, shown = page_of(boot(BertForMaskedLM, tokenizer=pieces), "Paris is franceland [MASK].", " france")
    assert "At [MASK] in [CLS] paris is france##land [MASK]. [SEP] the model says" in shown
    assert "[CLS]paris" not in shown


def test_gaps_are_where_the_tokenizer_writes_them():
    class Words:
        """Ids from 10 carry their own space; 9 is a word piece; the rest are words."""

        def convert_ids_to_tokens(self, token):
            return self.decode([token])

        def decode(self, ids):
            out = ""
            for i in ids:
                if i == 99:
                    raise IndexError
                out += f" g{i}" if i >= 10 else "piece" if i == 9 else f"{' ' if out else ''}w{i}"
            return out

    def gaps(ids):
        return token_gaps(Words(), ids, [" g" + str(i) if i >= 10 else "##piece" if i == 9 else f"w{i}" for i in ids])

    assert gaps([1, 2, 9]) == [False, True, False] and gaps([1, 2, 3]) == [False, True, True]
    assert gaps([10, 11, 12]) == [False] * 3 and gaps([1, 10]) == [False] * 2 and gaps([1, 99]) == [False] * 2
    assert token_gaps(None, [1, 2], ["a", "b"]) == [False, False]
    assert joined(["a", "b", " c"], [False, True, False]) == "a b c"
    model = tlb.zoo.load("facts")
    ids = model.to_tokens("Anna Berg lives in the city of")[0].tolist()
    assert not any(token_gaps(model.tokenizer, ids, [model.tokenizer.decode([i]) for i in ids]))


def test_a_sentencepiece_text_has_no_gaps():
    model = stories(worlds()[0])
    view = PromptView(tlb.backward_lens(model, "Once upon a time, there was", "girl", k=3))
    assert joined(view.tokens, view.gaps).startswith("<s> Once upon a time, there was") and not any(view.gaps)


def test_an_atlas_says_what_it_leaves_out():
    model = mixtral()
    shown = text_of(atlas(model, k=3, n_pairs=1, **quiet))
    elements = {name: parameter.numel() for name, parameter in model.named_parameters()}
    experts = sum(n for name, n in elements.items() if ".experts." in name)
    said = left_out_of_atlas(model, atlas_places(model, None, [0, 1]), [0, 1])
    assert said in shown and said.startswith(
        f"Left out, {experts / sum(elements.values()):.0%} of the model's parameters: experts.gate_up_proj, "
    )
    assert "experts.down_proj, of which each expert has its own" in said
    assert said.endswith("W_gate of layer 0, W_gate of layer 1 are experts' routers.")
    assert "left out" not in text_of(atlas(model, weights=["W_O"], k=3, n_pairs=1, **quiet)).lower()
    assert "left out" not in text_of(atlas(build(worlds()[0]), k=3, n_pairs=1, **quiet)).lower()


def test_an_atlas_of_layers_that_differ():
    """A mixer without heads in layer 0."""
    model = jamba()
    page = atlas(model, k=3, n_pairs=1, **quiet)
    shown = text_of(page)
    assert "OV" in shown and "1.3" in shown and "0.0 " not in shown.split("The heads' strongest")[1].split("score")[0]
    said = left_out_of_atlas(model, atlas_places(model, None, [0, 1]), [0, 1])
    assert said in shown and "mixer" in said or "mamba" in said or "W_in_proj" in said


def test_an_atlas_of_latent_attention_has_no_pairs():
    model = tiny("DeepseekV3ForCausalLM (eager experts)")
    shown = text_of(atlas(model, k=3, n_pairs=1, **quiet))
    assert "W_kv_b_proj" in shown and "strongest token pairs" not in shown
    assert "W_gate of layer 1 is the experts' router." in shown
    page = text_of(params_report(model, "W_O", 0, k=3, **quiet))
    assert "OV pairs" not in page and "belong together" not in page


def test_a_router_has_no_partner():
    page = text_of(params_report(mixtral(), "W_gate", 1, k=3, **quiet))
    assert "blocks.1.mlp.W_gate in words" in page and "belong together" not in page
    assert "belong together" in text_of(params_report(bridge("llama"), "W_gate", 1, k=3, **quiet))


def test_an_atlas_of_mixers_names_what_there_is():
    with pytest.raises(
        ValueError, match=r"got one whose blocks have mixer\.W_in_proj, .*mixer\.W_out_proj; read what"
    ) as caught:
        atlas(tiny("MambaForCausalLM"), **quiet)
    assert "'W_in'" not in str(caught.value) and "\n" not in str(caught.value)


def test_the_command_recommends_only_what_there_is(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("tl_backward.model.loading.load", lambda *args, **options: mixtral())
    code, said, _ = run(capsys, "params", "--model", "moe", "--no-open", "--out", tmp_path / "moe.html")
    assert code == 0 and "W_out" not in said and "--weight W_" in said and "Left out, " in said


@pytest.mark.skipif(worlds() == ["bridge"], reason="TransformerLens 4 has no HookedTransformer")
def test_experts_of_a_hooked_transformer_are_counted_once():
    said = left_out_of_atlas(model := hooked("moe"), atlas_places(model, None, [0]), [0])
    assert "experts.*.W_in" in said and "experts.0" not in said
    _, shown = page_of(hooked("moe"))
    assert "MLPs are gated" not in shown and "the experts and their router" in shown
