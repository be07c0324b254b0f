"""What turns crops into embeddings, and can be measured: a checkpoint, or a network of others by name."""
