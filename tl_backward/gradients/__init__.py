"""Gradients as factors: losses, one capture, its cache, hook points at weights, similarity of examples."""
