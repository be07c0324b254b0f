"""What the commands do: composes preprocess, datasets, train and evaluate, which do not know each other."""
