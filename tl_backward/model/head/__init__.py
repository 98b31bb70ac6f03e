"""The model's own head: how a vector of the last residual stream becomes logits, learnt from one short pass.

Architectures differ after their last block: a final norm, or none (OPT-350m); a projection to the embedding's width; a
dense layer, an activation and a norm (BERT); a factor before or after the unembedding (T5, Cohere, Granite), a softcap
(Gemma). Instead of a table of names, a pass over a few tokens is watched: the modules that lead from the last block's
output to the unembedding's input are the head's steps, and what is done to the unembedding's output is measured on
numbers put in its place. All of it is then held against that pass. What does not reproduce it is refused.
"""

from tl_backward.model.head._head import Head as Head
from tl_backward.model.head._head import Product as Product

__all__ = ["Head", "Product"]
