"""Runs as jobs of a cluster (SLURM), or of processes that stand in for one: submitit.

Every run is a job of its own. On SLURM a run of stage 2 depends on its run of stage 1,
and a job whose time is up, or that is preempted, is queued again and goes on.
"""

import importlib.util
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from covjax.errors import UsageError
from covjax.runtime.signals import Interrupt, Interrupted
from experiments.child import (
    Child,
    is_finished,
    last_words,
    read_record,
    write_record,
)
from experiments.plan import Run

_PAUSE = 1.0  # seconds between two looks at the jobs; submitit asks SLURM less often
_ALIVE = ("PENDING", "RUNNING", "REQUEUED", "PREEMPTED", "COMPLETING")
_LOCAL_MINUTES = 7 * 24 * 60  # a job that stands in has no time limit of its own


class Job:
    """What submitit calls where the job runs: the run, as a child process."""

    def __init__(self, run: Run):
        """Takes the run."""
        self._run = run
        self._child: Child | None = None

    def __call__(self) -> None:
        """Runs it.

        Raises:
          RuntimeError: if it failed, so that jobs that depend on it are not started.
        """
        self._child = Child(self._run)
        try:
            status = self._child.wait()
        except KeyboardInterrupt:
            self._child.send(signal.SIGINT)
            raise
        if status:
            raise RuntimeError(f"exit status {status}, see {self._run.log}")

    def checkpoint(self) -> Any:
        """Ends the run with a checkpoint; returns the job that goes on from there."""
        import submitit

        if self._child is not None:
            self._child.send(signal.SIGTERM)
            self._child.wait()
        return submitit.helpers.DelayedSubmission(Job(self._run))


def make_executor(kind: str, parameters: Mapping[str, Any], folder: Path) -> Any:
    """Returns submitit's executor.

    Args:
      kind: "slurm" or "submitit-local".
      parameters: of submitit's SlurmExecutor: partition, gpus_per_node, mem, …; and
        timeout_min.
      folder: where submitit keeps its files; every machine has to see it.

    Raises:
      UsageError: if there is no submitit or no SLURM, or a parameter is unknown.
    """
    if importlib.util.find_spec("submitit") is None:
        raise UsageError(f"--executor={kind}: pip install -e '.[slurm]' first")
    import submitit

    folder = folder.absolute()
    try:
        if kind == "slurm":
            executor = submitit.SlurmExecutor(folder / "%j")
            # submitit's other executors call it by the first name.
            names = {"timeout_min": "time"}
            executor.update_parameters(
                **{names.get(key, key): value for key, value in parameters.items()}
            )
        else:
            executor = submitit.LocalExecutor(folder / "%j")
            executor.update_parameters(
                **{"timeout_min": _LOCAL_MINUTES} | dict(parameters)
            )
    except (RuntimeError, ValueError, NameError) as error:
        said = " ".join(str(error).split())
        raise UsageError(f"--executor={kind}: {said}") from None
    return executor


def run_on_cluster(
    runs: Sequence[Run],
    *,
    kind: str,
    parameters: Mapping[str, Any],
    folder: Path,
    say: Callable[[str], None] = print,
) -> list[Run]:
    """Submits what is not finished, and waits for it.

    A job that is still queued or at work, of an earlier call, is not submitted again.

    Args:
      runs: a run of stage 1 before those that need it.
      kind: "slurm" or "submitit-local".
      parameters: of the jobs.
      folder: where submitit keeps its files.
      say: what is told a line a run.

    Returns:
      The runs that failed.

    Raises:
      Interrupted: after SIGINT or SIGTERM; jobs that were submitted go on.
      UsageError: if jobs cannot be submitted.
    """
    executor = make_executor(kind, parameters, folder)
    waiting = [run for run in runs if not is_finished(run)]
    if len(waiting) < len(runs):
        say(f"{len(runs) - len(waiting)} of {len(runs)} runs were finished before")
    at_work: dict[Path, tuple[Run, Any]] = {}  # folder → run and its job
    failed: list[Run] = []
    with Interrupt() as interrupt:
        while waiting or at_work:
            if interrupt.number:
                raise Interrupted(
                    interrupt.number,
                    f"no longer waiting; {len(at_work)} jobs go on, and the same"
                    " command waits for them again",
                )
            for run in list(waiting):
                _, lung = at_work.get(run.lung.folder, (0, 0)) if run.lung else (0, 0)
                if lung and kind != "slurm":
                    continue  # no queue here that knows of dependencies
                waiting.remove(run)
                if run.lung and not lung and not is_finished(run.lung):
                    failed.append(run)
                    say(f"FAILED    {run.label}: its run of stage 1 failed")
                    continue
                job = _submit(executor, run, after=lung, say=say)
                at_work[run.folder] = run, job
            for run, job in list(at_work.values()):
                if not job.done():
                    continue
                del at_work[run.folder]
                left = f"{len(waiting) + len(at_work)} left"
                if is_finished(run):
                    say(f"finished  {run.label}: {left}")
                else:
                    failed.append(run)
                    why = last_words(run.log)
                    say(f"FAILED    {run.label}: see {run.log}: {why}; {left}")
            time.sleep(_PAUSE)
    return failed


def _submit(executor: Any, run: Run, *, after: Any, say: Callable[[str], None]) -> Any:
    import submitit

    if isinstance(executor, submitit.SlurmExecutor):
        earlier = read_record(run).get("job")
        if earlier:
            job = submitit.SlurmJob(executor.folder, earlier)
            if job.watcher.get_state(earlier, mode="force") in _ALIVE:
                say(f"queued    {run.label}: job {earlier}, of an earlier call")
                return job
        executor.update_parameters(
            job_name=run.folder.name,
            dependency=f"afterok:{after.job_id}" if after else None,
            # Else a job whose stage 1 failed would wait for ever.
            additional_parameters={"kill-on-invalid-dep": "yes"},
        )
    try:
        job = executor.submit(Job(run))
    except (RuntimeError, OSError) as error:
        raise UsageError(f"{run.label}: {' '.join(str(error).split())}") from None
    write_record(run, job=job.job_id)
    say(f"queued    {run.label}: job {job.job_id}, {run.log}")
    return job
