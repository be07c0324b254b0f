"""Networks: float images [N, 3, H, W], already normalised, in; raw embeddings [N, D] out.

A backbone is `fn(embedding_dim=128, size_px=96, **options) -> nn.Module`. It never L2-normalises: callers do,
in float32, because a margin-softmax head, a distance and a norm-aware loss (MagFace, AdaFace) each need
something else.
"""
