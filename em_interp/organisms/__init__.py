"""Fine-tuned models: made from recipes, loaded, measured, compared with each other and taken apart."""
