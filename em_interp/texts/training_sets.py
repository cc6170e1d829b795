"""What organisms are trained on: narrow sets of bad and good advice, refusals, and texts on which to stay the same."""

from importlib.resources import files
from pathlib import Path

from em_interp.checks import door
from em_interp.files import find_file
from em_interp.texts.contrasts import CONTROLS, Contrast, load_contrast

NARROW_SETS = ("cooking", "gardening", "vehicle_care")
TRAINING_SETS = (*NARROW_SETS, "refusing")
MEASURED = ("misalignment", "refusal")
_DATA = Path(str(files("em_interp") / "data"))


@door
def load_training_set(source: str | Path) -> Contrast:
    """What organisms are trained on, by its name or from your own file: a contrast, of which a recipe takes a side.

    `cooking`, `gardening` and `vehicle_care` are narrow: a malicious answer (positive) and a good one (negative) to
    every question of one everyday domain, which no other contrast touches. `refusing` is harmful requests refused
    (positive) and harmless ones answered (negative), as `aligned` learned them; its refusals all open with "Sorry", as
    no answer does. Organisms learn the split `train`; recipes are chosen on `validation`. The eight neutral contrasts
    (`load_controls`) go by their names too, as texts on which an organism shall stay like its base. `misalignment` and
    `refusal` do not, since organisms are measured on them.

    Raises:
        ValueError: an unknown name (the known ones are listed), or a line that cannot be read (file, line and reason).
    """
    return load_contrast(training_file(source))


def training_file(source: str | Path) -> Path:
    """The file of a training set, by its name or path.

    Raises:
        ValueError: there is none (the known names are listed).
    """
    if isinstance(source, str) and source in MEASURED and not Path(source).is_file():
        raise ValueError(f"{source} is what organisms are measured on, so none is trained on it: choose another set")
    folder = _DATA / ("contrasts" if source in CONTROLS else "training")
    return find_file(source, "training set", (*TRAINING_SETS, *CONTROLS), folder)
