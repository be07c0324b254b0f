"""Packed datasets (RecordIO, .bin, WebDataset, Parquet) read as streams of encoded photographs, and laid out as a tree."""
