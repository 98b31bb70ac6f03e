"""Text in, tokens out: prompts and batches, files and edit cases, subjects, and strings that show each token."""
