"""All that touches a TransformerLens model: visits that leave no trace, passes, inputs, head, loading, fresh twins."""
