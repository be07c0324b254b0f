"""One protocol of the field a file: which photographs, and what is measured on their embeddings."""
