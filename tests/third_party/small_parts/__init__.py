"""A loss, a miner, a backbone and a trainer for facetrain, from outside of it."""
