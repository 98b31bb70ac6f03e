"""A model that sees both ways is asked at its mask, by all that asks: losses, lens, sweep, edits, scores."""

import pytest
import torch
from models import D_VOCAB, HAS_HOOKED_TRANSFORMER, bridge, hooked, randomise
from models import tokenizer as word_tokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformer_lens.model_bridge import TransformerBridge
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

import tl_backward as tlb
from tl_backward import inversion
from tl_backward.dissimilarity import SampleOptions, compare
from tl_backward.text.asked import mask_token
from tl_backward.text.cases import EditCase
from tl_backward.text.encoding import encode_continuation
from tl_backward.text.options import TextOptions

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "paris", "is", "the", "capital", "of", "france", "italy"]
WORDS += ["rome", "##land", "in", "lies"]
IDS = {word: i for i, word in enumerate(WORDS)}
PROMPT = "Paris is the capital of [MASK]."
AT = 6
SMALL = dict(vocab_size=len(WORDS), hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
             max_position_embeddings=18, attn_implementation="eager")  # fmt: skip


def word_pieces():
    """An uncased WordPiece tokenizer: it drops spaces, and puts [CLS] and [SEP] around every text."""
    core = Tokenizer(models.WordPiece(IDS, unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", IDS["[CLS]"]), ("[SEP]", IDS["[SEP]"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", name_or_path="tests/pieces",
    )  # fmt: skip


def boot(cls, scale=0.3, tokenizer=None, **options):
    config_class = {BertForMaskedLM: BertConfig, BertLMHeadModel: BertConfig, RobertaForMaskedLM: RobertaConfig}[cls]
    inner = cls(config_class(**SMALL, architectures=[cls.__name__], **options)).double().eval()
    randomise(inner, scale=scale)
    return TransformerBridge.boot_transformers(
        f"tests/{cls.__name__}", hf_model=inner, tokenizer=tokenizer or word_pieces(), device="cpu", dtype=torch.float64
    ).eval()


@pytest.fixture(scope="module")
def bert():
    return boot(BertForMaskedLM)


def said(model, text, at):
    """Hugging Face's own log probabilities, without any padding."""
    ids = torch.tensor([model.tokenizer(text)["input_ids"]])
    with torch.no_grad():
        return model.original_model(ids).logits[0, at].log_softmax(-1)


def test_the_words_are_the_words(bert):
    assert mask_token(bert) == IDS["[MASK]"]
    assert encode_continuation(bert, " france") == encode_continuation(bert, "france") == [IDS["france"]]
    assert encode_continuation(bert, "franceland") == [IDS["france"], IDS["##land"]]


@pytest.mark.parametrize("scale", [0.02, 0.3])
def test_which_models_see_both_ways(scale):
    assert mask_token(boot(BertForMaskedLM, scale)) == IDS["[MASK]"]
    assert mask_token(boot(BertLMHeadModel, scale, is_decoder=True)) is None
    # Without is_decoder the same class sees both ways: what it does counts, not its name.
    assert mask_token(boot(BertLMHeadModel, scale)) == IDS["[MASK]"]
    assert mask_token(bridge("gpt2")) is None and mask_token(bridge("llama")) is None
    if HAS_HOOKED_TRANSFORMER:
        assert mask_token(hooked()) is None
        assert mask_token(hooked(attention_dir="bidirectional")) == -1
    else:
        assert mask_token(boot(RobertaForMaskedLM, scale, pad_token_id=0)) == IDS["[MASK]"]


def test_losses_are_taken_at_the_mask(bert):
    log_probs = said(bert, PROMPT, AT)
    loss, _ = tlb.run_with_gradient_cache(bert, PROMPT, tlb.target_loss(" france"))
    assert abs(float(loss) + float(log_probs[IDS["france"]])) < 1e-12
    value, _ = tlb.run_with_gradient_cache(bert, PROMPT, tlb.logit_difference(" france", " italy"))
    assert abs(float(value) - float(log_probs[IDS["france"]] - log_probs[IDS["italy"]])) < 1e-12


def test_prompts_of_several_lengths(bert):
    texts, at = [PROMPT, "[MASK] lies in Italy", "Rome is in [MASK]"], [AT, 1, 4]
    lens = tlb.backward_lens(bert, texts, ["france", "rome", "italy"], k=2)
    assert lens.answer_position.tolist() == at
    wanted = sum(
        -said(bert, *pair)[IDS[word]] for *pair, word in zip(texts, at, ["france", "rome", "italy"], strict=True)
    )
    assert abs(float(lens.loss - wanted)) < 1e-12


def test_the_lens_reads_at_the_mask(bert):
    lens = tlb.backward_lens(bert, PROMPT, " france", k=3)
    assert lens.tokens[int(lens.answer_position)] == "[MASK]"
    assert lens.answer == WORDS[int(said(bert, PROMPT, AT).argmax())]
    assert lens.segments.labels()[0] == ["first", *["other"] * 5, "last", "other", "other"]
    page = tlb.render.lens_report(lens, model=None) if hasattr(tlb.render, "lens_report") else None
    assert page is None or "[MASK]" in str(page)


def test_the_gradient_is_autograds(bert):
    """The whole gradient of one weight, from the loss at the mask, against autograd on Hugging Face's own pass."""
    _, cache = tlb.run_with_gradient_cache(bert, PROMPT, tlb.target_loss(" france"), weights=["W_out"])
    inner, ids = bert.original_model, torch.tensor([bert.tokenizer(PROMPT)["input_ids"]])
    weight = bert.blocks[1].mlp.out.original_component.weight
    loss = -inner(ids).logits[0, AT].log_softmax(-1)[IDS["france"]]
    (wanted,) = torch.autograd.grad(loss, weight)
    torch.testing.assert_close(cache.factors["W_out", 1].gradient(), wanted.T, rtol=1e-9, atol=1e-12)


ASKS = {
    "lens": lambda model, prompt, target: tlb.backward_lens(model, prompt, target),
    "loss": lambda model, prompt, target: tlb.run_with_gradient_cache(model, prompt, tlb.target_loss(target)),
    "difference": lambda model, prompt, target: tlb.run_with_gradient_cache(
        model, prompt, tlb.logit_difference(target, "rome")
    ),
    "sweep": lambda model, prompt, target: tlb.sweep(model, [prompt], [target], control=None, show_progress=False),
    "gradient edit": lambda model, prompt, target: tlb.gradient_edit(model, prompt, target),
    "shift edit": lambda model, prompt, target: tlb.shift_edit(model, prompt, target, 1),
    "scores": lambda model, prompt, target: tlb.evaluate_edit(model, None, EditCase(prompt, target), n_tokens=0),
}
every_ask = pytest.mark.parametrize("ask", ASKS.values(), ids=ASKS)


@every_ask
def test_without_a_mask_it_is_refused(bert, ask):
    with pytest.raises(
        ValueError, match="Expected a mask where the answer belongs, since the model sees the tokens on bo"
    ):
        ask(bert, "Paris is the capital of", " france")


@every_ask
def test_of_several_masks_it_must_be_said_which(bert, ask):
    with pytest.raises(ValueError, match=r"Expected one mask in the prompt, got 2 at positions \[4, 6\]; say which is"):
        ask(bert, "Paris is the [MASK] of [MASK]", " france")


@pytest.mark.parametrize("ask", [ask for name, ask in ASKS.items() if name != "difference"])
def test_targets_of_several_tokens_are_refused(bert, ask):
    with pytest.raises(
        ValueError, match=r"Expected a target of one token for a model that fills in a mask, got ids \[11"
    ):
        ask(bert, PROMPT, "franceland")


def test_it_may_be_said_which(bert):
    text = "Paris is the [MASK] of [MASK]"
    for at in (4, 6):
        log_prob = said(bert, text, at)[IDS["france"]]
        loss, _ = tlb.run_with_gradient_cache(bert, text, tlb.target_loss(" france", positions=at))
        lens = tlb.backward_lens(bert, text, " france", position=at)
        assert abs(float(loss + log_prob)) < 1e-12 and abs(float(lens.loss + log_prob)) < 1e-12
        assert int(lens.answer_position) == at
        swept = tlb.sweep(bert, [text], [tlb.target_loss(" france", positions=at)], control=None, show_progress=False)
        assert swept.targets.tolist() == [IDS["france"]] and abs(float(swept.loss[0] + log_prob)) < 1e-12
        assert swept.answers.tolist() == [int(said(bert, text, at).argmax())]
        assert float(swept.values["target_rank"][0, 1]) == float(lens.shift[1].target_rank[at])
    # Any position may be asked when it is said.
    loss, _ = tlb.run_with_gradient_cache(bert, "Paris is in france", tlb.target_loss("rome", positions=1))
    assert abs(float(loss + said(bert, "Paris is in france", 1)[IDS["rome"]])) < 1e-12


def test_sweep_and_its_control(bert):
    texts, targets = [PROMPT, "[MASK] lies in Italy"], ["france", "rome"]
    swept = tlb.sweep(bert, texts, targets, n_draws=2, batch_size=2, show_progress=False)
    for index, (text, target, at) in enumerate(zip(texts, targets, [AT, 1], strict=True)):
        lens = tlb.backward_lens(bert, text, target)
        assert abs(float(swept.loss[index] - lens.loss)) < 1e-9
        assert float(swept.values["target_rank"][index, 1]) == float(lens.shift[1].target_rank[at])
    assert swept.control and len(swept.control.items) == 2


def test_an_edit_of_a_masked_model(bert):
    edit = tlb.gradient_edit(bert, PROMPT, "france", lr=0.5, steps=10)
    effect = tlb.editing.edit_effect(bert, edit, PROMPT, k=3)
    torch.testing.assert_close(effect.before, said(bert, PROMPT, AT).exp().float())
    assert float(effect.after[IDS["france"]]) > float(effect.before[IDS["france"]])
    case = EditCase(PROMPT, "france", paraphrases=("The capital of [MASK] is Paris",))
    scores = tlb.evaluate_edit(bert, None, case, n_tokens=0)
    old = int(said(bert, PROMPT, AT).argmax())
    moved = said(bert, PROMPT, AT).exp()[IDS["france"]] - said(bert, PROMPT, AT).exp()[old]
    assert abs(scores.efficacy_magnitude - float(moved)) < 1e-6
    other = said(bert, case.paraphrases[0], 4).exp()
    assert abs(scores.paraphrase_magnitude - float(other[IDS["france"]] - other[old])) < 1e-6
    with pytest.raises(ValueError, match="Expected a model that continues a text, got one that fills in masks"):
        tlb.evaluate_edit(bert, None, case)


def test_a_decoder_is_asked_last():
    model = boot(BertLMHeadModel, is_decoder=True)
    loss, _ = tlb.run_with_gradient_cache(model, "Paris is in", tlb.target_loss("france"))
    assert abs(float(loss + said(model, "Paris is in", -1)[IDS["france"]])) < 1e-12


@pytest.mark.skipif(not HAS_HOOKED_TRANSFORMER, reason="TransformerLens 4 has no HookedTransformer")
def test_no_mask_is_known():
    model = hooked(attention_dir="bidirectional")
    with pytest.raises(ValueError, match="got a tokenizer without a mask token; write"):
        tlb.backward_lens(model, "w3 w4", "w5")
    assert int(tlb.backward_lens(model, "w3 w4", "w5", position=1).answer_position) == 1


def test_padding_is_refused_where_it_changes_the_logits():
    """TransformerLens's OpenAI GPT takes a mask to be causal already."""
    inner = (
        OpenAIGPTLMHeadModel(OpenAIGPTConfig(vocab_size=D_VOCAB, n_positions=16, n_embd=24, n_layer=2, n_head=4))
        .double()
        .eval()
    )
    randomise(inner)
    model = TransformerBridge.boot_transformers(
        "t", hf_model=inner, tokenizer=word_tokenizer(), device="cpu", dtype=torch.float64
    )
    with pytest.raises(
        ValueError, match="Expected a model that gives a padded text the logits of the text alone, got a OpenAIGPT"
    ):
        tlb.run_with_gradient_cache(model, ["w5 w6 w7", "w8"], tlb.target_loss("w9"))
    loss, cache = tlb.run_with_gradient_cache(model, "w5 w6 w7", tlb.target_loss("w9"))
    ids = model.to_tokens("w5 w6 w7")
    expected = torch.nn.functional.cross_entropy(inner(ids).logits[0, -1:], model.to_tokens("w9", prepend_bos=False)[0])
    torch.testing.assert_close(loss, expected.detach())
    # A mask of the user's is the model's own affair: what it computes is captured as it is.
    given = tlb.run_with_gradient_cache(model, ids, tlb.target_loss("w9"), attention_mask=torch.ones_like(ids))[0]
    assert abs(float(given - loss)) > 0.01


@pytest.mark.skipif(not HAS_HOOKED_TRANSFORMER, reason="TransformerLens 4 has no HookedTransformer")
def test_padding_of_a_hooked_transformer_that_sees_both_ways():
    """TransformerLens applies no mask there: a padded text would be read with its padding."""
    model = hooked("ln", attention_dir="bidirectional")
    loss = lambda logits, tokens: logits.square().mean()  # noqa: E731
    with pytest.raises(ValueError, match="gives a padded text the logits of the text alone, got a HookedTransformer"):
        tlb.run_with_gradient_cache(model, ["w5 w6 w7", "w8"], loss)
    assert tlb.run_with_gradient_cache(model, ["w5 w6", "w8 w7"], loss)[1].factors


def test_texts_alone_are_no_examples_of_a_masked_model(bert):
    with pytest.raises(ValueError, match=r"Expected \(prompt, target\) pairs for a model that does not predict"):
        tlb.gradient_similarity(bert, [PROMPT, PROMPT], show_progress=False)


TEXTS = ["paris is the capital", "rome", "italy lies in france", "the capital of italy is rome", "paris lies in italy"]


def both_ways():
    """A Bridge of an encoder, and what TransformerLens 3 makes of one."""
    found = [boot(BertForMaskedLM)]
    if HAS_HOOKED_TRANSFORMER:
        model = hooked(attention_dir="bidirectional")
        model.tokenizer = word_pieces()
        found.append(model)
    return found


def test_activations_are_those_of_each_text_alone():
    """Padding would be seen: no matter in what batches, every activation is that of its text alone."""
    for model in both_ways():
        ids = [model.to_tokens(text)[0] for text in TEXTS]
        alone = [model.run_with_cache(row[None])[1][model_hook(model)][0] for row in ids]
        tokens = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        real = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in ids], batch_first=True).bool()
        for batch_size in (1, 2, 5):
            read = inversion.collect(
                model, tokens, model_hook(model), mask=real, batch_size=batch_size, show_progress=False
            )
            (values,) = read.values()
            for value, expected in zip(values, alone, strict=True):
                torch.testing.assert_close(value[: len(expected)], expected, rtol=1e-9, atol=1e-11)
            for at in (0, 2):
                found = inversion.pool_preimage(
                    model, TEXTS[0], model_hook(model), at, TEXTS, show_progress=False,
                    text_options=TextOptions(batch_size=batch_size), epsilon=inversion.Closeness(1e9, metric="euclidean", match="same"),
                )  # fmt: skip
                for text, distance in zip(found.texts, found.distances.tolist(), strict=True):
                    value = alone[TEXTS.index(text)]
                    own = alone[0][at]
                    expected = (value[at] - own).norm() / own.norm() if at < len(value) else float("inf")
                    assert distance == pytest.approx(float(expected), rel=1e-6, abs=1e-9)


def test_comparisons_do_not_depend_on_batches():
    for model in both_ways():
        other = tlb.model.controls.random_init(model, seed=0)
        for options in ({}, {"sample": "last"}, {"sample": "mean"}):
            whole, single = (
                compare(
                    model, other, TEXTS * 2, measures=["cka_biased", "procrustes"], show_progress=False,
                    text_options=TextOptions(batch_size=size), sample_options=SampleOptions(**options),
                )
                for size in (10, 1)
            )  # fmt: skip
            for measure in whole.measures:
                torch.testing.assert_close(whole[measure], single[measure], rtol=1e-9, atol=1e-11)


def model_hook(model):
    return f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
