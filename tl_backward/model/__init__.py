"""Access to a TransformerLens model: locks, hooks, partial passes, inputs, the head, loading and controls."""
