"""The job that the tests of this folder do."""

import pytest

from em_interp.report.settings import Settings


@pytest.fixture(scope="session")
def settings(base, small_contrasts) -> Settings:
    """A job small enough for a tiny model: some fifteen questions a side, eight a control."""
    return Settings(
        model=str(base),
        first=small_contrasts["misalignment"],
        second=small_contrasts["refusal"],
        control_questions=8,
        held_out_questions=3,
        open_questions=2,
        max_new_tokens=6,
        scales=(0.3,),
        n_random=1,
        n_null=2,
        n_resamples=50,
    )
