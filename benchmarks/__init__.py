"""What the library costs, as ratios to a bare Hugging Face forward on the same batches in the same run."""
