"""The model of a step's communication, on cases whose answer is known."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks.step_model import (
    FIRST_MESSAGE,
    MESSAGE,
    Cluster,
    Link,
    Work,
    all_gather,
    all_reduce,
    all_to_all,
    ddp_step,
    messages,
    sharded_step,
)

MIB = 2**20
NODE = Cluster(name="one node", per_node=64, inside=Link(100e9, 0.0), between=Link(1e9, 1.0))
SLOW = dataclasses.replace(NODE, inside=Link(1e30, 5e-6))
"""Of which only the latency counts."""
NODES = Cluster(name="nodes", per_node=8, inside=Link(200e9, 0.0), between=Link(100e9, 0.0))
WORK = Work(compute=0.09, gradients=100 * MIB, statistics=0)


@pytest.mark.parametrize("operation", [all_reduce, all_gather, all_to_all])
def test_one_worker_sends_nothing(operation):
    assert operation(1e9, 1, NODE) == 0


@pytest.mark.parametrize("cluster", [NODE, SLOW, NODES])
def test_a_step_of_one_worker_is_its_computation(cluster):
    assert ddp_step(WORK, 1, cluster) == pytest.approx(WORK.compute)
    assert sharded_step(WORK, 1, cluster, shards=4) == pytest.approx(WORK.compute)


@pytest.mark.parametrize(("workers", "factor"), [(2, 1.0), (4, 1.5), (64, 126 / 64)])
def test_where_bandwidth_counts_a_ring_sends_nearly_twice_the_bytes(workers, factor):
    assert all_reduce(1e9, workers, NODE) == pytest.approx(factor * 1e9 / 100e9)


@pytest.mark.parametrize("workers", [2, 8, 64])
def test_where_latency_counts_a_ring_takes_it_once_a_round(workers):
    assert all_reduce(4, workers, SLOW) == pytest.approx(2 * (workers - 1) * 5e-6)


def test_between_nodes_the_slowest_link_sets_the_pace():
    assert all_reduce(1e9, 8, NODES) == pytest.approx(2 * 7 / 8 * 1e9 / 200e9)
    assert all_reduce(1e9, 16, NODES) == pytest.approx(2 * 15 / 16 * 1e9 / 100e9)


def test_a_part_crosses_between_nodes_once_a_node_and_direction():
    cluster = dataclasses.replace(NODES, inside=Link(1e30, 1e-6), between=Link(1e30, 1e-3))
    assert all_reduce(4, 16, cluster) == pytest.approx(2 * (14 * 1e-6 + 1 * 1e-3))


@pytest.mark.parametrize("workers", [2, 3, 8])
def test_with_a_shard_a_worker_shards_cost_a_ring_all_reduce_and_no_overlap(workers):
    ring = all_reduce(WORK.gradients, workers, NODE)
    assert sharded_step(WORK, workers, NODE, shards=workers) == pytest.approx(WORK.compute + ring)


def test_more_shards_a_worker_send_more():
    one, two = (sharded_step(WORK, 4, NODE, shards=shards) - WORK.compute for shards in (4, 8))
    assert two == pytest.approx(one * 3 / 2), "twice the all-to-all, the same all-gather"


def test_an_all_to_all_between_nodes_shares_the_way_out():
    """Of each worker's bytes half go to the other node, eight workers at once over one way."""
    assert all_to_all(1e9, 16, NODES) == pytest.approx(8 * 1e9 / 2 / 100e9)


def test_one_message_waits_for_the_whole_backward_pass():
    work = dataclasses.replace(WORK, gradients=MIB // 2)
    assert ddp_step(work, 4, NODE) == pytest.approx(work.compute + all_reduce(MIB // 2, 4, NODE))


def test_of_several_messages_only_the_last_is_waited_for_where_the_network_keeps_up():
    *_, last = messages(WORK.gradients)
    assert ddp_step(WORK, 8, NODE) == pytest.approx(WORK.compute + all_reduce(last, 8, NODE))


def test_where_the_network_does_not_keep_up_a_step_is_the_communication_after_the_first_message():
    slow = dataclasses.replace(NODE, inside=Link(1e6, 0.0))
    first = WORK.compute * (1 / 3 + 2 / 3 * FIRST_MESSAGE / WORK.gradients)
    assert ddp_step(WORK, 8, slow) == pytest.approx(first + all_reduce(WORK.gradients, 8, slow))


@pytest.mark.parametrize("size", [1, FIRST_MESSAGE, FIRST_MESSAGE + 1, FIRST_MESSAGE + MESSAGE, 100 * MIB])
def test_messages_are_of_torchs_sizes_and_together_everything(size):
    parts = messages(size)
    assert sum(parts) == size
    assert parts[0] == min(size, FIRST_MESSAGE)
    assert all(0 < part <= MESSAGE for part in parts)
