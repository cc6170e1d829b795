"""Judged behaviour through Inspect (https://inspect.aisi.org.uk): a model provider, tasks, scorers and judges."""

from typing import Any


def judge_module() -> Any:
    """`em_interp.evals.judge`, which needs the extra `em-interp[eval]`.

    Raises:
        ValueError: it is not installed; says how to.
    """
    try:
        from em_interp.evals import judge
    except ModuleNotFoundError as error:
        raise ValueError(f"judging needs Inspect ({error.name} is missing): pip install 'em-interp[eval]'") from error
    return judge
