"""Start-up times and bandwidths of flat and two-hop exchanges: SMILE (arXiv 2212.05191), HetuMoE (arXiv 2203.14685)."""

from __future__ import annotations

import dataclasses

import pytest

from libmoe.core.errors import ConfigError
from libmoe.distributed import Cluster, Link, exchange_seconds

# 16 nodes of 8, 20 us and 50 GB/s of a node between them, 5 us and 300 GB/s of a rank inside.
CLUSTER = Cluster(16, 8, Link(20e-6, 50e9), Link(5e-6, 300e9))
SIZES = [1e3 * 4**i for i in range(12)]


def gain(cluster: Cluster, size: float, kind: str = "inter_first") -> float:
    return exchange_seconds(cluster, size) / exchange_seconds(cluster, size, kind)  # type: ignore[arg-type]


def test_seconds_are_those_worked_out_by_hand() -> None:
    size = 128e6
    crossing = 8 * 128e6 * 15 / 16 / 50e9
    assert crossing == pytest.approx(0.0192)
    assert exchange_seconds(CLUSTER, size) == pytest.approx(15 * 8 * 20e-6 + crossing)
    local = 7 * 5e-6 + 128e6 * 7 / 8 / 300e9
    for kind in ("inter_first", "intra_first"):
        assert exchange_seconds(CLUSTER, size, kind) == pytest.approx(15 * 20e-6 + crossing + local)
    given = 2 * 7 * (5e-6 + 128e6 / 300e9)
    assert exchange_seconds(CLUSTER, size, "leader") == pytest.approx(15 * 20e-6 + crossing + given)


def test_two_hops_gain_most_for_small_messages_and_lose_for_large_ones() -> None:
    gains = [gain(CLUSTER, size) for size in SIZES]
    assert gains == sorted(gains, reverse=True)
    assert gains[0] == pytest.approx((15 * 8 * 20) / (15 * 20 + 7 * 5), rel=0.01)
    assert gain(CLUSTER, 1e15) == pytest.approx(1 / (1 + (7 / 8 / 300) / (8 * 15 / 16 / 50)), rel=1e-4)


def test_both_take_as_long_where_the_latency_saved_is_the_time_of_the_second_hop() -> None:
    saved = 15 * 7 * 20e-6 - 7 * 5e-6
    size = saved / (7 / 8) * 300e9
    assert gain(CLUSTER, size) == pytest.approx(1)
    assert gain(CLUSTER, size / 2) > 1 > gain(CLUSTER, size * 2)


def test_the_gain_grows_with_the_number_of_nodes_up_to_the_ranks_of_one() -> None:
    gains = [gain(dataclasses.replace(CLUSTER, nodes=nodes), 1e3) for nodes in (2, 4, 16, 64, 1024)]
    assert gains == sorted(gains) and gains[0] > 1 and 7.9 < gains[-1] < 8


def test_on_one_card_messages_queue_but_for_those_of_leaders() -> None:
    queued = dataclasses.replace(CLUSTER, one_card=True)
    for kind, messages in [("flat", 8 * 15), ("inter_first", 15), ("intra_first", 15), ("leader", 0)]:
        more = exchange_seconds(queued, 1e6, kind) - exchange_seconds(CLUSTER, 1e6, kind)  # type: ignore[arg-type]
        assert more == pytest.approx(7 * messages * 20e-6)


def test_on_one_node_only_its_links_count_and_between_single_ranks_only_the_others() -> None:
    node = dataclasses.replace(CLUSTER, nodes=1)
    assert exchange_seconds(node, 8e6) == pytest.approx(7 * (5e-6 + 1e6 / 300e9))
    assert gain(node, 8e6) == 1
    single = dataclasses.replace(CLUSTER, ranks_per_node=1)
    for kind in ("inter_first", "intra_first", "leader"):
        assert gain(single, 8e6, kind) == 1


def test_what_cannot_be_is_named() -> None:
    with pytest.raises(ConfigError, match="unknown kind 'leaders'; did you mean 'leader'"):
        exchange_seconds(CLUSTER, 1.0, "leaders")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"size=-1\.0 must be at least 0 bytes"):
        exchange_seconds(CLUSTER, -1.0)
    with pytest.raises(ConfigError, match="bandwidth=0 must be greater than 0"):
        Link(1e-6, 0)
    with pytest.raises(ConfigError, match="latency=-1 must be at least 0"):
        Link(-1, 1)
    with pytest.raises(ConfigError, match="nodes=0 must be at least 1"):
        dataclasses.replace(CLUSTER, nodes=0)
