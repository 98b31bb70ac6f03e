"""Parts of a computation side by side: in order, with the caller's modes, and nothing of it left behind."""

import threading
from itertools import count

import pytest
import torch

import tl_backward.vocabulary.extremes as module
from tl_backward._support.threads import over_threads
from tl_backward.gradients.gram import ExampleRows, inner_products
from tl_backward.vocabulary.extremes import extremes

CPU = torch.device("cpu")


@pytest.fixture(params=[2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def new_threads_have():
    """How many threads torch gives to a thread that starts now."""
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


def test_parts_are_worked_on_alone_and_come_in_order(threads):
    def work(part):
        return part, torch.get_num_threads(), threading.current_thread() is threading.main_thread()

    found = list(over_threads(work, range(20), CPU))
    assert [part for part, _, _ in found] == list(range(20))
    assert {(n, main) for _, n, main in found} == {(1, False)}
    assert torch.get_num_threads() == new_threads_have() == threads


def test_parts_are_asked_for_as_threads_become_free(threads):
    asked, taken = [], 0
    for _ in over_threads(lambda part: part, map(lambda i: asked.append(i) or i, range(20)), CPU):
        taken += 1
        assert len(asked) - taken <= threads


def test_fewer_parts_than_threads_are_divided_by_torch(threads):
    def work(_):
        return torch.get_num_threads(), threading.current_thread() is threading.main_thread()

    assert list(over_threads(work, range(threads - 1), CPU)) == [(threads, True)] * (threads - 1)
    assert not list(over_threads(work, [], CPU))


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_each_part_has_the_modes_of_the_caller(threads, mode):
    def modes(_=None):
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    with mode():
        assert set(over_threads(modes, range(5), CPU)) == {modes()}


def test_an_error_and_a_caller_that_leaves_end_the_work(threads):
    done = []

    def work(part):
        done.append(part)
        return 1 // (part - 3)

    with pytest.raises(ZeroDivisionError):
        list(over_threads(work, count(), CPU))
    left = over_threads(done.append, count(100), CPU)
    next(left)
    left.close()
    assert len(done) <= 6 + 2 * threads
    assert torch.get_num_threads() == new_threads_have() == threads
    assert not any("tl_backward" in thread.name for thread in threading.enumerate())


@pytest.mark.parametrize(("n", "d_vocab", "k"), [(7, 9001, 10), (1, 2049, 5), (3, 4099, 1), (0, 5000, 3), (5, 12, 12)])
def test_stripes_of_a_vocabulary_say_what_the_whole_does(threads, n, d_vocab, k):
    generator = torch.Generator().manual_seed(n)
    vectors, matrix = (torch.randn(*shape, generator=generator).double() for shape in ((n, 6), (6, d_vocab)))
    matrix[:, -1] = matrix[:, 1]  # a tie across stripes
    wanted = torch.tensor([[1, d_vocab // 2, d_vocab - 1]]).expand(n, 3)
    found, logits = extremes(vectors, matrix, k, wanted=wanted), vectors @ matrix
    for (values, ids), largest in ((found.top, True), (found.bottom, False)):
        torch.testing.assert_close(values, logits.sort(dim=1, descending=largest).values[:, :k])
        torch.testing.assert_close(logits.gather(1, ids), values)
        assert all(len(row.unique()) == k for row in ids)
    assert torch.equal(found.ranks[:, 1], (logits > logits[:, [d_vocab // 2]]).sum(1))
    assert torch.equal(found.ranks[:, 0], found.ranks[:, 2])


def test_all_threads_together_hold_what_one_may(threads, monkeypatch):
    made, empty = [], torch.Tensor.new_empty
    monkeypatch.setattr(module, "MAX_LOGIT_BYTES", 1 << 20)
    monkeypatch.setattr(
        torch.Tensor,
        "new_empty",
        lambda self, *size, **options: made.append((size, options)) or empty(self, *size, **options),
    )
    extremes(torch.randn(16, 4), torch.randn(4, 40_000), 3)
    buffers = [size[0] for size, _ in made if len(size) == 1]
    assert len(buffers) == threads
    assert 0 < 8 * sum(buffers) <= 1 << 20


@pytest.mark.parametrize("tokens", [2, 40])
def test_inner_products_are_those_of_the_formed_gradients(threads, tokens, monkeypatch):
    monkeypatch.setattr("tl_backward.gradients.gram._TILE", (16, 32))
    monkeypatch.setattr("tl_backward.gradients.gram._BLOCK_BYTES", 4096)
    generator = torch.Generator().manual_seed(tokens)
    rows = [
        ExampleRows.of(
            torch.randn(n * tokens, 5, generator=generator).double(),
            torch.randn(n * tokens, 7, generator=generator).double(),
            torch.arange(n).repeat_interleave(tokens),
            n_examples=n,
        )
        for n in (6, 9)
    ]
    dense = [each.gradients(slice(None), slice(None)) for each in rows]
    torch.testing.assert_close(inner_products(*rows), dense[0] @ dense[1].T)
    torch.testing.assert_close(inner_products(rows[0], rows[0]), dense[0] @ dense[0].T)
