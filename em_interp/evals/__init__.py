"""Judged behaviour through Inspect (https://inspect.aisi.org.uk): a model provider, tasks, scorers and judges."""
