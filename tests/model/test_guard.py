"""What a visit takes off a model comes back."""

import pytest
from torch import nn

from tl_backward.model.guard import hooks_off


def test_hooks_come_back_once_however_often_a_module_is_named():
    module = nn.Linear(2, 2)
    module.register_forward_hook(lambda *arguments: None, with_kwargs=False, always_call=True)
    module.register_forward_pre_hook(lambda *arguments, **named: None, with_kwargs=True)
    before = {name: (id(value), dict(value)) for name, value in vars(module).items() if name.endswith("hooks")}
    with pytest.raises(ZeroDivisionError), hooks_off([module, module]):
        assert not module._forward_hooks and not module._forward_pre_hooks
        module.register_forward_hook(lambda *arguments: 1 / 0)
        raise ZeroDivisionError
    assert before == {name: (id(value), dict(value)) for name, value in vars(module).items() if name.endswith("hooks")}
    assert len(module._forward_hooks) == len(module._forward_pre_hooks) == 1
