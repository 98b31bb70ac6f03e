"""What the two models of a page are called."""


def told_apart(names: tuple[str, str]) -> tuple[str, str]:
    """Names of two models that differ: a model beside itself is called A and B too."""
    a, b = names
    return (a, b) if a != b else (f"{a} (A)", f"{b} (B)")
