"""Ray Train workers that are all on this machine and speak to each other on loopback only.

By default rank 0 keeps torch's meeting place, a server on every interface that asks nobody for a token, and what
workers exchange goes by whatever interface the machine's name stands for. Not here: workers on several machines.
"""

from __future__ import annotations

import os
import socket
import uuid
from typing import Any

import ray
from ray._private import worker
from ray.train.backend import Backend
from ray.train.torch import TorchConfig
from ray.train.torch import config as torch_config


class Loopback(TorchConfig):
    """A process group that meets in a file of this machine."""

    @property
    def backend_cls(self) -> type[Backend]:
        """What starts and ends the group."""
        return _Meeting


class _Meeting(torch_config._TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        gpus = worker_group.get_resources_per_worker().get("GPU", 0)
        node = worker._global_node
        assert node is not None  # this runs in an actor
        # Another file at every start: what an earlier group wrote would be taken for this one's.
        file = f"{node.get_session_dir_path()}/meeting-{uuid.uuid4().hex}"
        worker_group.execute(_keep_to_loopback)
        worker_group.execute(torch_config._set_torch_distributed_env_vars)
        started = [
            worker_group.execute_single_async(
                rank,
                torch_config._setup_torch_process_group,
                backend=backend_config.backend or ("nccl" if gpus else "gloo"),
                world_rank=rank,
                world_size=len(worker_group),
                init_method=f"file://{file}",
                timeout_s=backend_config.timeout_s,
            )
            for rank in range(len(worker_group))
        ]
        ray.get(started)


def _keep_to_loopback() -> None:
    name = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    os.environ.update(GLOO_SOCKET_IFNAME=name, NCCL_SOCKET_IFNAME=name)
