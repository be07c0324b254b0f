"""A loss, a miner, a backbone, a trainer, an embedder and a protocol for facetrain, from outside of it."""
