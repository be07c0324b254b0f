"""A loss, a miner, a backbone, a trainer and an embedder for facetrain, from outside of it."""
