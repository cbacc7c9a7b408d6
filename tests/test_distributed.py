"""Processes that find each other, agree to stop, and notice when one is gone."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import pytest
from jax.experimental import multihost_utils

from covjax import parallel
from covjax.errors import UsageError
from covjax.runtime import distributed
from experiments.faults.hosts import Group, hold_port

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_STEP_NUM_NODES": "1",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1314521088.0;tcp://10.96.0.1:34911",
    "OMPI_VERSION": "4.1.6",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}


@pytest.fixture
def joined(monkeypatch) -> list:
    """What JAX was asked to make of this process; it is left as it is."""
    for name in os.environ:  # of the cluster that the tests themselves run on
        if name.startswith(("SLURM_", "OMPI_")):
            monkeypatch.delenv(name)
    asked = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: asked.append(k))
    monkeypatch.setattr(distributed, "_accompany", lambda: None)
    monkeypatch.setattr(distributed.atexit, "register", lambda _: None)
    return asked


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("a:70000", 2, 0), "--coordinator=a:70000: not HOST:PORT"),
        (("a:1", None, None), "--num_processes and --process_id: missing"),
        ((None, 2, 0), "--coordinator: missing"),
        (("a:1", 2, None), "--process_id: missing"),
        (("a", 2, 0), "--coordinator=a: not HOST:PORT"),
        (("a:b", 2, 0), "--coordinator=a:b: not HOST:PORT"),
        (("a:1", 0, 0), "--num_processes=0: must be at least 1"),
        (("a:1", 2, 2), "--process_id=2: must be from 0 to 1"),
        (("a:1", 2, -1), "--process_id=-1: must be from 0 to 1"),
    ],
)
def test_half_of_what_processes_need_is_refused(joined, given, said):
    with pytest.raises(UsageError, match=f"^{re.escape(said)}") as error:
        distributed.join(*given)
    assert "\n" not in str(error.value) and not joined


@pytest.mark.parametrize(
    "environment",
    [
        {},
        SLURM | {"SLURM_NTASKS": "1"},  # JAX would leave it one GPU of several
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"},  # in the script, outside of srun
        OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
    ],
)
def test_one_process_stays_alone(joined, monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    distributed.join(None, None, None)
    assert not joined


@pytest.mark.parametrize(
    ("environment", "name"), [(SLURM, "slurm"), (OPEN_MPI, "ompi")]
)
def test_a_cluster_is_found_by_jax(joined, monkeypatch, environment, name):
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    distributed.join(None, None, None)
    assert [asked["cluster_detection_method"] for asked in joined] == [name]
    distributed.join("a:1", 2, 1)  # by hand, whatever the cluster
    assert joined[1]["cluster_detection_method"] == "deactivate"
    assert joined[0]["heartbeat_timeout_seconds"] < 60  # within a minute


@pytest.mark.parametrize(
    ("environment", "devices"),
    [
        (SLURM, None),  # two on a machine: one GPU each, says JAX
        (SLURM | {"SLURM_STEP_NUM_NODES": "2"}, []),  # all that JAX sees
        (OPEN_MPI, None),
        (OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, []),
        (SLURM | {"SLURM_STEP_NUM_NODES": "2", "JAX_LOCAL_DEVICE_IDS": "1"}, None),
    ],
)
def test_one_process_a_machine_has_all_its_gpus(
    joined, monkeypatch, environment, devices
):
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    distributed.join(None, None, None)
    assert joined[0]["local_device_ids"] == devices


def test_processes_that_do_not_meet_are_told_how(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("DEADLINE_EXCEEDED: Barrier timed out.\nTrace: …")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    monkeypatch.setattr(distributed, "_accompany", lambda: None)
    with pytest.raises(UsageError, match="did not find each .*DEADLINE_EXCEEDED") as e:
        distributed.join("a:1", 2, 1)
    assert "\n" not in str(e.value)


def test_a_port_that_is_taken_is_refused(joined):
    with hold_port() as held:  # from others than this test
        port = held.getsockname()[1]
        refused = pytest.raises(UsageError, match=f"port {port}: .*already in use")
        with socket.create_server(("", port)), refused:
            distributed.join(f"127.0.0.1:{port}", 2, 0)
        distributed.join(f"127.0.0.1:{port}", 2, 0)
    assert len(joined) == 1


def test_alone_a_process_stops_when_it_wants_or_is_told(devices, monkeypatch):
    agree_to_stop = parallel.compile_agreement()
    assert [agree_to_stop(step, step == 2) for step in (1, 2)] == [False, True]
    monkeypatch.setattr(
        multihost_utils, "reached_preemption_sync_point", lambda step: step == 4
    )
    assert [agree_to_stop(step, False) for step in (3, 4)] == [False, True]

    def fail(_):
        raise RuntimeError("the preemption service is disabled")

    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", fail)
    assert [agree_to_stop(step, step == 6) for step in (5, 6)] == [False, True]


# What one of two processes does; the scenario comes before the flags of the command.
_BEGIN = """
import os, signal, sys, time
import numpy as np
scenario, rank = sys.argv[1], int(sys.argv[-1].split("=")[1])
coordinator = sys.argv[2].split("=")[1]
"""
_JOIN = """
from covjax import parallel
from covjax.runtime import distributed as hosts
from covjax.errors import UsageError
from covjax.runtime.exit_messages import tell
hosts.join(coordinator, 2, rank)
"""
_AGREE = """
import jax
from covjax import parallel
from covjax.train import run_folder
jax.distributed.initialize(coordinator, 2, rank, cluster_detection_method="deactivate")
agree_to_stop, wants, steps = parallel.compile_agreement(), {0: 7, 1: 4}, []
for step in range(1, 12):
    if agree_to_stop(step, step >= wants[rank]):
        steps.append(step)
# JAX's own handler stands: SIGTERM to one of them is a notice of the cluster.
agree_to_stop, told = parallel.compile_agreement(), None
for step in range(12, 1000):
    if rank == 1 and step == 15:
        os.kill(os.getpid(), signal.SIGTERM)
    if agree_to_stop(step, False):
        told = step
        break
    time.sleep(0.02)
class Config:
    class data:
        task = "lung"
time.sleep(2 * rank)  # their clocks are at different seconds
with run_folder.new_folder(Config) as folder:
    print("AGREED", steps, told, folder, flush=True)
"""
_END = """
one = np.ones((parallel.jax.local_device_count(), 1), np.float32)
mean = parallel.compile_eval_step(lambda x, _: parallel.jax.lax.pmean(x, "batch"))
try:
    for step in range(1, 1000):
        parallel.unreplicate(mean(one, one))
        if scenario == f"kill-{rank}" and step == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        if scenario == "fail" and rank == 1 and step == 3:
            raise UsageError("only here")
        time.sleep(0.02)
except Exception as error:
    hosts.leave(tell(error))
"""


@contextmanager
def two(folder: Path, scenario: str, *program: str) -> Iterator[Group]:
    code = _BEGIN + "".join(program)
    with Group(folder, [scenario], devices=1, program=["-c", code]) as group:
        yield group


def test_all_processes_stop_at_the_same_step_whoever_wants_to(tmp_path):
    with two(tmp_path, "agree", _AGREE) as group:
        group.finish(0, 0)
        said = [re.findall("AGREED .*", group.said(rank)) for rank in (0, 1)]
    assert said[0] == said[1]
    # The wish of step 4 counts from the step after it on; nobody's before.
    steps, told, folder = re.findall(r"(\[.*\]) (\d+) (.*)", said[0][0])[0]
    assert json.loads(steps) == list(range(5, 12))
    assert int(told) > 15
    assert folder.startswith("runs/lung-2")


def test_the_companion_speaks_for_a_process_that_was_aborted(tmp_path):
    # Without the service of process 0, JAX aborts the others from C++.
    with two(tmp_path, "kill-0", _JOIN, _END) as group:
        statuses = group.wait()
        group.wait_for_words(1, distributed.LOST)
        assert statuses[0] == -signal.SIGKILL and statuses[1] not in (0, None)


def test_a_process_whose_neighbour_is_gone_says_so_and_fails(tmp_path):
    with two(tmp_path, "fail", _JOIN, _END) as group:
        statuses = group.wait()
        group.wait_for_words(0, distributed.LOST)
        assert statuses[0] not in (0, None) and statuses[1] == 2
        # That one says why, and no more.
        assert "covjax: only here" in group.said(1)
        assert distributed.LOST not in group.said(1)


_DECODING = """
import atexit, sys, threading
import cv2, numpy as np
from covjax.runtime import distributed as hosts
began = threading.Event()
def decode():
    image = np.zeros((1000, 1000), np.uint8)
    while True:
        cv2.GaussianBlur(image, (31, 31), 0)
        began.set()
threading.Thread(target=decode, daemon=True).start()
began.wait()
atexit.register(lambda: print("in order", file=sys.stderr))
print("said")
hosts.leave(int(sys.argv[1]))
"""


@pytest.mark.parametrize("status", [1, 2, 143])
def test_a_thread_that_is_within_a_library_changes_no_exit_status(status):
    done = subprocess.run(
        [sys.executable, "-c", _DECODING, str(status)], capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("said\n", "in order\n")
    assert done.returncode == status
