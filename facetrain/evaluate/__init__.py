"""Measuring a trained network: verification protocols, LFW's pair lists, metrics and figures."""
