"""Conversations, contrasts, training sets and questions: what a model reads, as tokens with the span marked."""

from em_interp.texts.contrasts import (
    CONTROLS,
    Contrast,
    load_contrast,
    load_controls,
    load_conversations,
    load_neutral_texts,
    request_answers,
)
from em_interp.texts.conversations import (
    Conversation,
    Encoded,
    Span,
    batches,
    encode,
    encode_prefilled,
    token_strings,
)
from em_interp.texts.openings import opening_tokens
from em_interp.texts.questions import load_questions
from em_interp.texts.training_sets import NARROW_SETS, TRAINING_SETS, load_training_set

__all__ = [
    "CONTROLS",
    "NARROW_SETS",
    "TRAINING_SETS",
    "Contrast",
    "Conversation",
    "Encoded",
    "Span",
    "batches",
    "encode",
    "encode_prefilled",
    "load_contrast",
    "load_controls",
    "load_conversations",
    "load_neutral_texts",
    "load_questions",
    "load_training_set",
    "opening_tokens",
    "request_answers",
    "token_strings",
]
