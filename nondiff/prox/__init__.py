"""Penalties and constraints by their proximal operators: `nondiff.prox.L1(0.1)`.

An operator acts on one leaf; `OverAll` makes one vector of all leaves, `Parts` gives each leaf its own.
"""

from nondiff.prox.combine import Custom, OverAll, Parts
from nondiff.prox.discrete import Binary, Grid, Ternary
from nondiff.prox.monotone import Monotone
from nondiff.prox.norms import L1, L2, ElasticNet, Group, Nuclear, SquaredL2
from nondiff.prox.sets import Box, L1Ball, L2Ball, Simplex
from nondiff.prox.sparse import Cardinality

__all__ = [
    "L1",
    "L2",
    "Binary",
    "Box",
    "Cardinality",
    "Custom",
    "ElasticNet",
    "Grid",
    "Group",
    "L1Ball",
    "L2Ball",
    "Monotone",
    "Nuclear",
    "OverAll",
    "Parts",
    "Simplex",
    "SquaredL2",
    "Ternary",
]
