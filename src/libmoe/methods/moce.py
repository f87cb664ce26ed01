"""``moce``: the cluster of an image, and nothing else, chooses its experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from libmoe.core.errors import ConfigError
from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.layers.finding import in_routers
from libmoe.losses import BalanceLoss, ImportanceLoss, Loss, RoutingEntropyLoss, Scope, ZLoss
from libmoe.methods.base import Method, register_method
from libmoe.routers.gates import LinearGate
from libmoe.routers.grouped_decision import FixedTable, IdGate, refuse_scope_of_sequences
from libmoe.routers.noise import GaussianNoise
from libmoe.routers.topk import TopKRouter


@register_method(
    "moce",
    summary="the cluster of an image chooses its expert; a cluster's path can be cut out",
    paper=64,
    aliases=("cluster-conditional",),
    exact_upcycling=False,
    causal=True,
    batch_independent=True,
    side_inputs=("cluster",),
)
@dataclass(kw_only=True)
class MoCE(Method):
    """Mixture of cluster-conditional experts (Liu et al., arXiv 2402.05382 §3): ``y = G_e E_e(x)`` for each token of an
    image, ``G = softmax(W c_z + noise)``, c_z the centroid of the image's cluster z.

    Three stages: pretrain a dense model; cluster its features of whole images, of a masked autoencoder
    :func:`~libmoe.models.masked_autoencoder.image_features` (:func:`libmoe.routers.clustering.balanced_clusters`), and
    keep the centroids; put this in with ``init: copy``, :func:`set_centroids`, and train with the cluster of each image
    as a side input, batches mixing clusters.  A downstream task finds the cluster of most of its images
    (:func:`libmoe.routers.clustering.vote`) with the *same* dense features, and deploys that cluster's path alone
    (:func:`libmoe.models.extracting.extract_group`), a dense model of the usual size, which
    :func:`libmoe.models.plain.to_plain` makes one of the architecture's own modules.  ``examples/moce_mae.py`` goes
    through all of it.

    Number of clusters, loss coefficients and noise are not certain in the sources at hand.

    Attributes:
        clusters: number of centroids.
        feature_dim: their width; ``None`` takes the model's.
        key: side input with the cluster of each image.
        noise_std: standard deviation of the logits' noise while training, drawn for a cluster; ``None`` takes 1 / N.
        imbalance: coefficient of ``CV^2`` of the experts' importance over a batch.
        confidence: coefficient of the entropy of a cluster's gates, which makes clusters commit.
        renormalise: divide the k gates by their sum: a converted model begins as the dense one, and with k = 1 the gate
            learns from its losses alone.  As published, G scales what the expert adds.
    """

    num_experts: int = 8
    top_k: int = 1
    balance: float = 0.0
    balance_scope: Scope = "micro_batch"
    clusters: int = 256
    feature_dim: int | None = None
    key: str = "cluster"
    noise_std: float | None = None
    imbalance: float = 0.01
    confidence: float = 0.01
    renormalise: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise_std is not None and self.noise_std < 0:
            raise ConfigError(f"noise_std={self.noise_std} must not be negative; 0 is off")
        refuse_scope_of_sequences(self.balance, self.balance_scope)

    def build_router(self, site: Site) -> Router:
        width = site.dim if self.feature_dim is None else self.feature_dim
        std = 1 / self.num_experts if self.noise_std is None else self.noise_std
        gate = IdGate(
            LinearGate(width, self.num_experts),
            self.key,
            FixedTable(self.clusters, width),
            GaussianNoise(std) if std else None,
        )
        return TopKRouter(site.dim, self.num_experts, self.top_k, renormalise=self.renormalise, gate=gate)

    def build_losses(self, site: Site) -> Sequence[Loss]:
        return [
            ImportanceLoss(self.imbalance, "micro_batch", of="scores"),
            RoutingEntropyLoss(self.confidence),
            BalanceLoss(self.balance, self.balance_scope),
            ZLoss(self.z_loss),
        ]


def set_centroids(model: nn.Module, centroid_CF: Tensor) -> int:
    """Put the centroids into every gate of ``model`` that is decided by clusters; returns how many there are.

    Raises:
        ConfigError: there is none, or one for another number or width of centroids.
    """
    tables = in_routers(model, FixedTable, "moce")
    for table in tables:
        table.set(centroid_CF)
    return len(tables)
