"""Lists, NumPy arrays and pandas columns where a function takes tensors."""

import numpy as np
import pandas
import plain
import torch

from tl_backward._support.arrays import tensor_of

SCRIPT = """
import numpy as np
import tl_backward as tlb

model = tlb.zoo.load("facts")
columns = model.W_U.T[:2].detach()
said = tlb.readout(model, columns).top_ids
for given in (columns.tolist(), columns.numpy(), columns.numpy().astype("float64")):
    assert tlb.readout(model, given).top_ids.equal(said)
weight = model.blocks[2].mlp.W_out
before = weight.clone()
for ones in (lambda n: [1] * n, np.ones, lambda n: np.ones(n, dtype="int32")):
    with tlb.rank_one_edit(model, "blocks.2.mlp.W_out", ones(512), ones(128), scale=0.5):
        assert weight.allclose(before + 0.5)
assert tlb.top_pairs([[1.0, 0.0], [0.0, 2.0]], np.eye(2, dtype="float32"), 1).values.tolist() == [2.0]
x = np.random.default_rng(0).normal(size=(20, 3))
measures = tlb.dissimilarity.measures
assert float(measures.cka_biased(x.tolist(), x)) > 1 - 1e-6
assert tlb.dissimilarity.classical_mds([[0, 1], [1, 0]], dimensions=1).points.shape == (2, 1)
assert tlb.inversion.distances([[3, 0], [1, 0]], np.array([1.0, 0.0])).tolist() == [2.0, 0.0]
texts = ["Anna Berg lives in the city of", "The pet of Anna Berg is a"]
for labels in ([0, 1], (0, 1), np.array([0, 1])):
    assert tlb.alignment.fine_tune(model, texts, labels, steps=1, show_progress=False).bias.shape == (2,)
print("done")
"""


def test_arrays_where_tensors_are_taken():
    done = plain.run(SCRIPT)
    assert done.stdout == "done\n", done.stderr


def test_what_becomes_a_tensor():
    assert tensor_of([1, 2]).dtype == torch.float32 and tensor_of([1, 2], floats=False).dtype == torch.int64
    assert tensor_of(np.ones(2)).dtype == torch.float64 and tensor_of([[1.0], [2.0]]).shape == (2, 1)
    assert tensor_of(pandas.Series([1.5, 2.5])).tolist() == [1.5, 2.5]
    turned = np.arange(6.0).reshape(2, 3).T[::-1]
    assert tensor_of(turned).tolist() == turned.tolist()
    own = np.zeros(2)
    tensor_of(own).add_(1)
    assert own.tolist() == [0, 0]
    for other in ("text", ["a", "b"], [[1.0], [2.0, 3.0]], [], None, 3, [torch.ones(2)], {"a": 1}):
        assert tensor_of(other) is other
