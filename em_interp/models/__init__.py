"""A model by its name or folder, with or without an adapter, as a hooked model checked against Hugging Face."""
