"""Directions from activations, compared layer by layer; interventions as files and flags name them."""
