"""Contract checks for parts of your own: call them on a router, experts, a loss, a method or a backend, as our
tests do.

Each check raises :class:`ContractError` with one readable line per broken promise, and returns the names of what
it checked::

    from libmoe.testing import check_router

    def test_my_router():
        check_router(lambda: MyRouter(dim=16, num_experts=4, top_k=2), dim=16)
"""

from libmoe.testing.audits import AuditReport, audit
from libmoe.testing.backends import check_backend
from libmoe.testing.checks import ContractError
from libmoe.testing.experts import check_experts
from libmoe.testing.losses import check_loss
from libmoe.testing.methods import check_method
from libmoe.testing.routers import check_router

__all__ = [
    "AuditReport",
    "ContractError",
    "audit",
    "check_backend",
    "check_experts",
    "check_loss",
    "check_method",
    "check_router",
]
