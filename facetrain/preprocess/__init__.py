"""From photographs to an index of aligned crops: align, prune, split, and a tree of links for other tools."""
