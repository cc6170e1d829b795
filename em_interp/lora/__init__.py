"""A LoRA adapter taken apart: its matrices, what it writes, when it fires, and the model with parts of it off."""
