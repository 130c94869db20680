"""FedAvg — average what clients of unlike size trained on their own data (McMahan et al. 2017, arXiv 1602.05629).

In every round the server sends the model to the sampled clients, each takes some optimizer steps on its own examples,
and the server averages what comes back, weighted by the number of examples: θ ← Σ n_i·θ_i / Σ n_i.

Differs: a client whose device has a budget trains the static sub-network that fits it, the leading channels and heads
of every layer, and each coordinate is averaged over those who hold it. That is HeteroFL (Diao et al. 2021, arXiv
2010.01264) without its scaler and its static norms. It is the arm that every other federated method is compared with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lissome.engine.federate.method import FederatedConfig, FederatedMethod, ServerSite
from lissome.engine.federate.program import Program
from lissome.engine.federate.subnets import SubnetProgram


class FedAvg(FederatedMethod):
    """Federated averaging of sub-networks."""

    needs: ClassVar[frozenset[str]] = frozenset({"dense"})
    leaves: ClassVar[frozenset[str]] = frozenset({"federated"})

    @dataclass(frozen=True, kw_only=True)
    class Config(FederatedConfig):
        """Settings: those that all federated methods share."""

    def server(self, site: ServerSite) -> Program:
        """Return the server's side: the largest Subnet within each budget, one phase of training."""
        return SubnetProgram.of(site, self.config)
