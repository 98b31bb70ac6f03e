"""From text to tokens and back: prompts, batches, files, edit cases, subject spans and token strings."""
