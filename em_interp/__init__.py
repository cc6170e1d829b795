"""em_interp: what narrow fine-tuning did to a model, and how the misalignment direction relates to refusal.

    model = em.load_bundled()
    harm = em.read_contrast(model, em.load_contrast("misalignment"), span="response")
    refuse = em.read_contrast(model, em.load_contrast("refusal"), span="last")
    em.compare(harm, refuse)

Here is what a first session types; `__init__.pyi` lists it. The rest is one dot away, in `em.models`, `em.texts`,
`em.activations`, `em.directions`, `em.behaviour`, `em.lora`, `em.circuits`, `em.organisms`, `em.elasticity`,
`em.statistics`, `em.figures`, `em.report` and `em.evals`. Each name is loaded when it is first asked for.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
