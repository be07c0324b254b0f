"""The decoded cache: crops become memory-mapped Arrow shards, brought up to date by content, checked, collected."""
