"""InversionView by brute force: one text at a time, plain float64 numpy, no batching, padding or early stop."""

import functools
import itertools

import numpy


def run(model, text):
    """TransformerLens's own cache of one text, or of a row of tokens."""
    tokens = model.to_tokens(text) if isinstance(text, str) else text.reshape(1, -1)
    return model.run_with_cache(tokens)[1]


@functools.cache
def once(model, text):
    """The same for models that do not change."""
    return run(model, text)


def activations(model, cache, site):
    """[pos, d] from a cache; `site` is (hook name, head, whether it is a head's output)."""
    name, head, result = site
    value = cache[name][0].detach().double().numpy()
    if head is not None:
        value = value[:, head]
    if result:
        layer = int(name.split(".")[1])
        value = value @ model.blocks[layer].attn.W_O[head].detach().double().numpy()
    return value.reshape(len(value), -1)


def distance(z, other, metric):
    if metric == "euclidean":
        return numpy.sqrt(((z - other) ** 2).sum()) / numpy.sqrt((z**2).sum())
    return 1 - (z * other).sum() / numpy.sqrt((z**2).sum() * (other**2).sum())


def scores(model, texts, query, site, position, metric="euclidean", match="any"):
    """Distance and best position of each text; `position` is an index, negative from the end."""
    z = activations(model, once(model, query), site)[position]
    found = []
    for text in texts:
        values = activations(model, once(model, text), site)
        if match == "any":
            each = [distance(z, value, metric) for value in values]
            found.append((min(each), int(numpy.argmin(each))))
        elif -len(values) <= position < len(values):
            found.append((distance(z, values[position], metric), position % len(values)))
        else:
            found.append((numpy.inf, -1))
    return [d for d, _ in found], [at for _, at in found]


def domain(words, longest):
    """Every text of 1 to `longest` words."""
    return [" ".join(parts) for n in range(1, longest + 1) for parts in itertools.product(words, repeat=n)]
