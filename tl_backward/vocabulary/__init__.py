"""Vectors and products over the whole vocabulary: what is largest, and where a token stands."""
