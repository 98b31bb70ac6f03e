"""The tokenizers of the zoo: words for the facts, characters for the two small tasks."""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tl_backward.zoo.facts import vocabulary

BOS, PAD, UNKNOWN = "<bos>", "<pad>", "<unk>"


def facts_tokenizer(further: Iterable[str] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer with one token a word, which carries its leading space as GPT-2's do; `further` words come last.

    ``" Oslo"`` and the full stop are one token each, and so is ``"Anna"`` with or without a space
    before it. Encoding prepends ``<bos>``; ``<pad>`` also serves as the end of text; a word that is
    not among theirs becomes ``<unk>``.
    """
    return _split_by(r" ?[^\s.]+|\.|\s", (*vocabulary(), *further), "facts")


def character_tokenizer(characters: str, name: str) -> PreTrainedTokenizerFast:
    """A tokenizer with one token a character, and the facts tokenizer's special tokens and habits."""
    return _split_by(r"[\s\S]", characters, name)


def _split_by(pattern: str, tokens: Iterable[str], name: str) -> PreTrainedTokenizerFast:
    ids = {token: i for i, token in enumerate((BOS, PAD, UNKNOWN, *tokens))}
    words = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    words.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token=BOS,
        eos_token=PAD,
        pad_token=PAD,
        unk_token=UNKNOWN,
        add_bos_token=True,
        # TransformerLens reads this one of every tokenizer, though it only exists on loaded ones.
        name_or_path=name,
        clean_up_tokenization_spaces=False,
    )
