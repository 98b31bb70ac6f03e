"""From text to tokens and back: prompts, batches, files, edit cases, subject spans and token strings."""

from tl_backward._support.submodules import offer

offer(__name__)
