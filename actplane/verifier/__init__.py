"""
The mirror: an offline model of the kernel's verifier. It judges bytecode from anywhere; it knows
nothing of policies, and it never talks to a kernel.
"""

from actplane.verifier.domains.types import BtfKind, OwnTypes, Type, TypeProvider, TypeRef
from actplane.verifier.paths.verification import Options
from actplane.verifier.report import Refusal, Report, Statistics, Step
from actplane.verifier.tables.profiles import DEFAULT, PROFILES, KernelProfile, profile_of
from actplane.verifier.verify import verify

__all__ = [
    "DEFAULT",
    "PROFILES",
    "BtfKind",
    "KernelProfile",
    "Options",
    "OwnTypes",
    "Refusal",
    "Report",
    "Statistics",
    "Step",
    "Type",
    "TypeProvider",
    "TypeRef",
    "profile_of",
    "verify",
]
