"""Losses over a batch of embeddings."""
