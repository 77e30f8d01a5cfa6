"""Runs inside a local cluster (`connect.execute`) and prints, as one line of JSON, what a Ray driver sees there."""

import argparse
import json
import logging
import os
from typing import Any

import ray

from shoal.cluster.launch import NODE_LABEL
from shoal.on_ray import drain


@ray.remote(num_cpus=0, resources={"slot": 1})
class Worker:
    def where(self) -> dict:
        context = ray.get_runtime_context()
        return {
            "node_id": context.get_node_id(),
            "pid": os.getpid(),
            "ip": ray.util.get_node_ip_address(),
            "niceness": os.nice(0),
            "interface": os.environ["GLOO_SOCKET_IFNAME"],
            "cluster": os.environ["SHOAL_CLUSTER"],
        }


@ray.remote(num_cpus=1)
def plain_task() -> str:
    return ray.get_runtime_context().get_node_id()


def main(nodes: list[str], to_drain: str | None) -> None:
    ray.init(log_to_driver=False, logging_level=logging.ERROR)
    actor: Any = Worker
    workers = [actor.options(label_selector={NODE_LABEL: node}).remote() for node in nodes]
    where = dict(zip(nodes, ray.get([w.where.remote() for w in workers], timeout=500), strict=True))
    if to_drain:
        drain.drain_node(os.environ["RAY_ADDRESS"], where[to_drain]["node_id"], 60, "test")
    task_on = ray.get(plain_task.remote(), timeout=500)
    found = {"ray_nodes": ray.nodes(), "workers": where, "task_on": task_on, "draining": drain.draining_nodes()}
    print(json.dumps(found))


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("--drain")
    options.add_argument("nodes", nargs="+")
    asked = options.parse_args()
    main(asked.nodes, asked.drain)
