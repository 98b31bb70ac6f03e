import pytest

from tl_backward import zoo
from tl_backward.model.loading import has_hooked_transformer

HOOKED = pytest.param(
    "hooked",
    marks=pytest.mark.skipif(not has_hooked_transformer(), reason="TransformerLens 4 has no HookedTransformer"),
)


@pytest.fixture(params=[HOOKED, "bridge"])
def kind(request):
    return request.param


@pytest.fixture(scope="session")
def world():
    return zoo.facts.world()
