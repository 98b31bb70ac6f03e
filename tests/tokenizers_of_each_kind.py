"""Small tokenizers of every kind, made with the `tokenizers` library, and a stand-in for a model that has one."""

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

WORDS = [
    "Anna",
    "Berg",
    "Oslo",
    "Niger",
    "Nigerian",
    "here",
    "there",
    "rent",
    "the",
    "lives",
    "in",
    "Paul",
    "Paulo",
    "and",
]
CORPUS = [f"{a} {b} {c}." for a in WORDS for b in WORDS for c in WORDS[:4]] + ["1984 2020 17"] * 5
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def wrapped(tokenizer, **special):
    options = {"add_bos_token": True} if "bos_token" in special else {}  # TransformerLens loads others by their names
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, name_or_path="made", **options, **special
    )


def byte_level(trim=True, prefix=False, size=320):
    """GPT-2's kind: bytes as letters, one special token for everything."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix, trim_offsets=trim)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(CORPUS, trainer)
    return wrapped(made, **dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"))


def sentencepiece(dummy_prefix):
    """Llama's kind (a space before every text) or Gemma's (none): BPE over "▁" with byte fallback, digits apart."""
    characters = sorted({char for text in CORPUS for char in text} - {" "})
    tokens = ["<unk>", "<s>", "</s>", *BYTES, SPACE, *characters]
    merges, known = [], set(tokens)
    for word in WORDS:
        for text in (word, SPACE + word):
            for n in range(2, len(text) + 1):
                pair = (text[: n - 1], text[n - 1])
                if text[:n] not in known and pair[0] in known:
                    known.add(text[:n])
                    tokens.append(text[:n])
                    merges.append(pair)
    made = Tokenizer(
        models.BPE(
            {token: i for i, token in enumerate(tokens)}, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True
        )
    )
    spaces = normalizers.Replace(" ", SPACE)
    made.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if dummy_prefix else spaces
    back = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*back, decoders.Strip(" ", 1, 0)] if dummy_prefix else back)
    return wrapped(made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def metaspace(scheme):
    """T5's kind: Unigram over "▁", put before a text that does not begin with it ("always", "first") or never."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    made.decoder = decoders.Metaspace(prepend_scheme=scheme)
    extra = [chr(code) for code in range(33, 127)]
    trainer = trainers.UnigramTrainer(
        vocab_size=200,
        special_tokens=["<unk>", "<s>", "</s>"],
        unk_token="<unk>",
        initial_alphabet=[*extra, SPACE],
        show_progress=False,
    )
    made.train_from_iterator(CORPUS, trainer)
    return wrapped(made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def word_piece():
    """BERT's kind: lower case, no accents, "##" within words."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=150,
        special_tokens=["[UNK]", "[CLS]", "[SEP]", "[MASK]"],
        initial_alphabet=list("abcdefghijklmnopqrstuvwxyz"),
        show_progress=False,
    )
    made.train_from_iterator(CORPUS, trainer)
    return wrapped(made, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]")


def word_level():
    """A token a word, its space dropped."""
    tokens = ["[UNK]", *WORDS, *".,", "São", "Zoë"]
    made = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return wrapped(made, unk_token="[UNK]")


def letters():
    """A token a letter, spaces dropped."""
    tokens = ["[UNK]", *sorted({char for text in CORPUS for char in text} - {" "}), *"ãëü"]
    made = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")]
    )
    return wrapped(made, unk_token="[UNK]")


KINDS = {
    "byte-level": byte_level,
    "byte-level, offsets with spaces": lambda: byte_level(trim=False),
    "byte-level, space before": lambda: byte_level(prefix=True),
    "sentencepiece, dummy prefix": lambda: sentencepiece(True),
    "sentencepiece, none": lambda: sentencepiece(False),
    "unigram, always": lambda: metaspace("always"),
    "unigram, first": lambda: metaspace("first"),
    "unigram, never": lambda: metaspace("never"),
    "word pieces": word_piece,
    "words": word_level,
    "letters": letters,
}


class Slow:
    """A tokenizer without offsets: what a slow one offers."""

    is_fast = False

    def __init__(self, fast):
        self._fast = fast

    def __getattr__(self, name):
        return getattr(self._fast, name)

    def encode(self, text, add_special_tokens=True):
        return self._fast.encode(text, add_special_tokens=add_special_tokens)

    def decode(self, ids):
        return self._fast.decode(ids)

    def __len__(self):
        return len(self._fast)


class Encodes:
    """What a loss and a lens ask of a model's text."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def to_tokens(self, text, prepend_bos=False):
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return torch.tensor([[self.tokenizer.bos_token_id] * bool(prepend_bos) + ids], dtype=torch.long)
