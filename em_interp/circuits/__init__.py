"""What a direction says and which parts of the network write and read it."""

from em_interp.circuits.readout import TokenReadout, logit_lens

__all__ = ["TokenReadout", "logit_lens"]
