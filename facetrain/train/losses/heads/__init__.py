"""Heads: losses with a weight vector for each person of the training. See `facetrain.train.losses.head`."""
