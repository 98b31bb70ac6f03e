"""What users without run-time type checks are told of arguments of the wrong kind (these tests' own checks come first)."""

import plain

CALLS = {
    "resolve_place(model, 7)": "TypeError: Expected a place as a hook name, (short name, layer) or (short name, layer, head), got 7",
    "resolve_place(model, ('z',))": "TypeError: Expected a place as a hook name",
    "resolve_place(model, ('z', '0'))": "TypeError: Expected a place as a hook name",
    "resolve_place(object(), ('z', 0))": "TypeError: Expected a TransformerLens model",
    "encode(model, [3])": "TypeError: Expected integer tokens [text, pos], got torch.int64 of shape [1]; put one text's ids into a list.",
    "encode(model, ['w3', 3])": "TypeError: Expected inputs as a list of texts or a tensor of tokens [text, pos], got a list of something else",
    "encode(model, 3)": "TypeError: Expected inputs as a list of texts or a tensor of tokens [text, pos], got a int of something else",
    "encode(model, torch.tensor([0, 1]))": "TypeError: Expected integer tokens [text, pos], got torch.int64 of shape [2]",
    "encode(model, torch.zeros(2, 2))": "TypeError: Expected integer tokens [text, pos], got torch.float32",
    "find_positions(encode(model, ['w3']), 1.5)": "TypeError: Expected a position as an index, a token or a function (text, tokens) -> index, got 1.5",
    "common_features(preimage_of(model, 'w3', ('z', 0, 0), -1, ['w3']), [len])": "TypeError: Expected features as {name: function of a text}, got list",
    "Closeness(metric='dot')": "ValueError: Expected metric among 'euclidean', 'cosine', got 'dot'; choose one of them.",
    "Closeness(match='all')": "ValueError: Expected match among 'any', 'same', got 'all'; choose one of them.",
    "DecoderConfig(conditioning='add')": "ValueError: Expected conditioning among 'prefix', 'cross', got 'add'; choose one of them.",
    "InversionOptions('guess')": "ValueError: Expected method among 'decoder', 'search', 'pool', 'enumerate', got 'guess'",
    "TrainingOptions(mixed_precision='half')": "ValueError: Expected mixed_precision among 'no', 'fp16', 'bf16', got 'half'",
    "distances(torch.ones(2, 3), torch.ones(3), 'l1')": "ValueError: Expected metric among 'euclidean', 'cosine', got 'l1'; choose one of them.",
    "ActivationIndex.of(model, ('z', 1), -1, ['w3'], match='all')": "ValueError: Expected match among 'any', 'same', got 'all'",
    "ActivationIndex.of(model, ('z', 1), -1, ['w3']).preimage('w3', metric='dot')": "ValueError: Expected metric among",
    "search_preimage(model, ['w3'], ('z', 0), -1, ['w3'])": "TypeError: Expected a query as a text, its tokens [pos] or a Query, got ['w3']; the order is (model, query,",
    "preimage_of(model, 'w3', ('z', 0), -1, ['w3'], epsilon=0)": "ValueError: Expected epsilon > 0, got 0",
}  # fmt: skip


def test_messages():
    script = f"""
import torch
from models import bridge
from tl_backward.inversion import *
from tl_backward.inversion.options import InversionOptions
from tl_backward.inversion.positions import find_positions
from tl_backward.text.encoded import encode
model = bridge()
for call in {list(CALLS)!r}:
    try:
        eval(call)
        print("fine")
    except Exception as error:
        print(f"{{type(error).__name__}}: {{error}}")
"""
    done = plain.run(script)
    assert done.returncode == 0, done.stderr
    for (call, message), line in zip(CALLS.items(), done.stdout.splitlines(), strict=True):
        assert line.startswith(message), call
