"""`hydra/launcher=ray`: tasks of Ray, on this machine or on a cluster that is running."""

import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

from sentexp.errors import UserError, complain
from sentexp.sweeps.cluster import ClusterLauncher, Ends, do_and_return, plain
from sentexp.sweeps.group import Work

if TYPE_CHECKING:
    from omegaconf import DictConfig

ADDRESS = "hydra.launcher.ray.init.address"
REACHED_IN, JOINED_IN = 5.0, 60.0
"""Seconds in which the address must take a connection, and in which a process must have joined the cluster."""
PROBE = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False); ray.shutdown()"
WRONG_TOKEN = ("InvalidAuthToken", "Unauthenticated", "AuthenticationError")
OBJECT_STORE = 78_643_200
"""Bytes, of a Ray that is started here: results of runs are small."""


class RayLauncher(ClusterLauncher):
    """Tasks of Ray.

    Args:
        runs_per_job: runs of a task.
        ray: `init` and `remote`, what ray.init and ray.remote take.
    """

    def __init__(self, ray: "DictConfig", runs_per_job: int | str = 1) -> None:
        super().__init__(runs_per_job)
        self.init: dict[str, Any] = plain(ray.init)
        self.remote: dict[str, Any] = plain(ray.remote)

    def check(self) -> None:
        """Find out whether the cluster answers, and takes this process.

        Raises:
            UserError: it does not.
        """
        address = self.init.get("address")
        if address not in (None, "local"):
            check_address(str(address))

    def run(self, works: list[Work], ends: Ends) -> None:
        """Send groups of runs, and wait until each has ended; Ray starts those again whose node is lost."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        if not ray.is_initialized():
            own = {} if self.init.get("address") else {"object_store_memory": OBJECT_STORE}
            ray.init(**{"log_to_driver": False, **own, **self.init})
        send = ray.remote(**self.remote)(do_and_return) if self.remote else ray.remote(do_and_return)
        pending = {send.remote(work): work for work in works}
        while pending:
            for task in ray.wait(list(pending), num_returns=1, timeout=1.0)[0]:
                work = pending.pop(task)
                try:
                    for number, outcome in ray.get(task):
                        ends.take(number, outcome)
                except RayTaskError as error:
                    ends.fail(work, f"{type(error.cause).__name__}: {str(error.cause).partition(chr(10))[0]}")
                except RayError as error:
                    complain(f"A task of Ray was killed ({type(error).__name__}).")
            ends.look()


def check_address(address: str) -> None:
    """Find out whether a Ray cluster takes this process.

    Raises:
        UserError: nobody answers, or a token is missing or wrong.
    """
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit() and "://" not in address:
        try:
            socket.create_connection((host, int(port)), timeout=REACHED_IN).close()
        except OSError as error:
            raise UserError(f"{ADDRESS}={address}: nobody answers there ({error}). No run was started.") from None
    said = _join_once(address)
    if said is None:
        return
    if any(word in said for word in WRONG_TOKEN):
        raise UserError(
            f"{ADDRESS}={address}: the cluster asks for a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to that of "
            "the cluster. No run was started."
        )
    raise UserError(f"{ADDRESS}={address} cannot be joined: {said[:300]}")


def _join_once(address: str) -> str | None:
    """Join the cluster in a process of its own, and return the line that says why not; None where all is well.

    Ray itself tries for a minute, with a warning each second.
    """
    words = [sys.executable, "-c", PROBE, address]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:  # noqa: S603
        timer = threading.Timer(JOINED_IN, process.kill)
        timer.start()
        last = ""
        assert process.stdout is not None
        for line in process.stdout:
            last = line.strip() or last
            if any(word in line for word in WRONG_TOKEN):
                process.kill()
                break
        timer.cancel()
    return None if process.returncode == 0 else last or f"it does not answer within {JOINED_IN:.0f} s"
