"""Elasticity: how well a model compresses texts, and how fast fine-tuning makes and unmakes that."""

from em_interp.elasticity.coder import Header, decode, encode, read_header
from em_interp.elasticity.compression import CompressionRate, baseline_rates, compression_rate
from em_interp.elasticity.found import results_in
from em_interp.elasticity.languages import Language
from em_interp.elasticity.law import Law, run_law
from em_interp.elasticity.law_results import LawResult
from em_interp.elasticity.realign import Realign, run_realign
from em_interp.elasticity.realign_results import RealignResult
from em_interp.elasticity.rebound import Rebound, run_rebound
from em_interp.elasticity.rebound_results import ReboundResult, Trend, trend_over_models
from em_interp.elasticity.resistance import Resistance, run_resistance
from em_interp.elasticity.resistance_results import ResistanceResult
from em_interp.elasticity.results import ExperimentResult
from em_interp.elasticity.token_tree import TokenTree

__all__ = [
    "CompressionRate",
    "ExperimentResult",
    "Header",
    "Language",
    "Law",
    "LawResult",
    "Realign",
    "RealignResult",
    "Rebound",
    "ReboundResult",
    "Resistance",
    "ResistanceResult",
    "TokenTree",
    "Trend",
    "baseline_rates",
    "compression_rate",
    "decode",
    "encode",
    "read_header",
    "results_in",
    "run_law",
    "run_realign",
    "run_rebound",
    "run_resistance",
    "trend_over_models",
]
