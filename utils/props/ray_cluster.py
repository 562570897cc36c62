"""A Ray cluster on this machine that writes below one folder and reaches for nothing
outside, and that ends when the notebook does."""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import socket
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from utils.runtime import Problem, needs

# Ray takes 127.0.0.1 for a mistake and puts the network card's address in its place.
NODE = "127.0.0.2" if sys.platform == "linux" else None


class RayCluster:
    """A Ray cluster of one node with `cpus` slots; `address` is for `ray.init`.

    `ray.init` alone would also start one. But on a busy machine it gives up after 15 s
    of waiting for a dashboard that we do not want, and it asks the network for its own
    address. All that Ray writes goes below `folder`. Raises `Problem` when Ray is
    missing or cannot start.
    """

    def __init__(self, cpus: int, folder: Path) -> None:
        needs("operations", "ray")
        self.home, self.node = folder / "ray", None
        self.before = {name: os.environ.get(name) for name in RAY_SETTINGS}
        os.environ.update(RAY_SETTINGS, RAY_TMPDIR=str(folder))
        atexit.register(self.close)
        try:
            self.node = _ray_node(cpus, self.home)
        except Exception as error:
            self.close()
            reason = str(error).split(". ")[0]
            raise Problem(f"Ray could not start a cluster here: {reason}.") from None
        self.address: str = self.node.gcs_address

    def close(self) -> None:
        """Leave the cluster and end it; a second call does nothing."""
        import ray

        atexit.unregister(self.close)
        ray.shutdown()
        if self.node:
            self.node.kill_all_processes(check_alive=False, allow_graceful=True)
        self.node = None
        for name, value in self.before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        shutil.rmtree(self.home, ignore_errors=True)

    def __enter__(self) -> RayCluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


PORTS = (
    "metrics_agent_port",
    "metrics_export_port",
    "dashboard_agent_listen_port",
    "runtime_env_agent_port",
)
RAY_SETTINGS = {
    "RAY_TMPDIR": "",
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": secrets.token_hex(28),
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_idle_worker_killing_time_threshold_ms": "3600000",  # starting one takes long
}


def _ray_node(cpus: int, home: Path) -> Any:
    """Start Ray's processes, in a session whose name is short: the path of a socket
    ends at 107 bytes."""
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    class QuietNode(Node):
        def start_api_server(self, **_: Any) -> None:
            """Left out: without a dashboard it only asks which cloud this is."""

    ports: dict[str, Any] = dict(zip(PORTS, _free_ports(len(PORTS)), strict=True))
    # The dashboard agent would write this file; nobody here needs its port.
    node = RAY_SETTINGS["RAY_OVERRIDE_NODE_ID_FOR_TESTING"]
    (home / "s").mkdir(parents=True, exist_ok=True)
    port = str(ports["dashboard_agent_listen_port"])
    (home / "s" / f"dashboard_agent_listen_port_{node}").write_text(port)
    settings = RayParams(
        num_cpus=cpus,
        num_gpus=0,
        node_ip_address=NODE,
        object_store_memory=80_000_000,  # bytes: about the least that Ray takes
        temp_dir=str(home),
        session_name="s",
        include_dashboard=False,
        include_log_monitor=False,  # type: ignore[arg-type]
        no_monitor=True,
        **ports,
    )
    return QuietNode(settings, head=True, shutdown_at_exit=True, spawn_reaper=True)


def _free_ports(count: int) -> list[int]:
    """Ports that nobody uses at this moment."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
