"""Judges a tuned model by a policy, on paired rows. No torch, no kfp."""
