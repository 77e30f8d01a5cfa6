"""A cloud for Ray's autoscaler whose machines are Ray nodes on this one, and which can be told to misbehave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider

from shoal.cluster.launch import NODE_LABEL

__all__ = ["Cloud"]


class Cloud(FakeMultiNodeProvider):
    """`provider.manners` names a folder: `mute` in it: no machine ever comes; `frail`: each dies as soon as it has
    come; `kill-NAME`: the machine of that name dies. `made` counts those that came, a line each."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        self._manners = Path(provider_config["manners"])

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        """The machines that live, once those that are to die have."""
        for node_id in list(self._nodes):
            mark = self._manners / f"kill-{name_of(node_id)}"
            if mark.exists() and "node" in self._nodes[node_id]:
                mark.unlink()
                self._die(node_id)
        return list(super().non_terminated_nodes(tag_filters))

    def _create_node_with_resources_and_labels(
        self, node_config: Any, tags: Any, count: int, resources: Any, labels: dict[str, str]
    ) -> None:
        if (self._manners / "mute").exists():
            return
        node_id = f"{'f' * 51}{self._next_node_id + 1:05}"
        named = {**labels, NODE_LABEL: name_of(node_id)}
        super()._create_node_with_resources_and_labels(node_config, tags, count, resources, named)
        with (self._manners / "made").open("a") as file:
            print(name_of(node_id), file=file)
        if (self._manners / "frail").exists():
            self._die(node_id)

    def _die(self, node_id: str) -> None:
        machine: Any = self._nodes.pop(node_id)["node"]
        machine.kill_all_processes(check_alive=False, allow_graceful=False)


def name_of(node_id: str) -> str:
    """What a machine is called in a run's record."""
    return f"machine{int(node_id[-5:])}"
