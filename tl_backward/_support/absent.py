"""What stands for a part of a result that was not asked for: false, and whatever is taken from it says how to ask."""

from typing import Literal, NoReturn


class Absent:
    """A part of a result that there is not. `if lens.control:` tells; what is taken from it raises one sentence.

    Examples:
        >>> from tl_backward._support.absent import Absent
        >>> nothing = Absent("a control", "ask for one with control='random_init'")
        >>> bool(nothing), nothing == None
        (False, True)
        >>> nothing.shift
        Traceback (most recent call last):
        AttributeError: Expected a control, of which to take shift, got a result without; ask for one with ...
    """

    def __init__(self, what: str, remedy: str) -> None:
        self._what, self._remedy = what, remedy

    def __bool__(self) -> Literal[False]:
        return False

    def __eq__(self, other: object) -> bool:
        return other is None or isinstance(other, Absent)

    def __hash__(self) -> int:
        return hash(None)

    def __repr__(self) -> str:
        return f"without {self._what}; {self._remedy}"

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_"):  # what Python, copying and notebooks look for
            raise AttributeError(name)
        raise AttributeError(f"Expected {self._what}, of which to take {name}, got a result without; {self._remedy}.")
