"""Trainers: what `ft train --trainer NAME` runs. The loop asks them for a sampler and a loss, and knows no names."""
