"""Conversations, contrasts, training sets and questions: what a model reads, as tokens with the span marked."""
