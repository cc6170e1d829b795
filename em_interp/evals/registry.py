"""What Inspect finds through the entry point `inspect_ai`: the provider, the tasks and the scorers."""

from inspect_ai.model import modelapi

from em_interp.evals import judge, scorers, tasks

__all__ = ["em_interp", "judge", "scorers", "tasks"]


@modelapi(name="em_interp")
def em_interp():
    """The provider `em_interp/NAME`, imported when a model of it is asked for."""
    from em_interp.evals.provider import HookedModelAPI

    return HookedModelAPI
