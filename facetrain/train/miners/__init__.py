"""Miners: which triplets of a batch a triplet loss sees."""
