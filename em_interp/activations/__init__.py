"""Forward passes over many conversations, and what the residual stream holds on a span of their tokens."""
