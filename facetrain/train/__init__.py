"""Training: the loop and what plugs into it (trainers, backbones, losses)."""
