"""Training and prediction of the two fine-tuned models (paper, section 2.5)."""
