"""Data: text in, three disjoint token streams out. Knows datasets."""
