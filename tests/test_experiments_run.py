"""Runs as children, at once, on a cluster, from the command line; one for real."""

import dataclasses
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from covjax.config import save_config
from covjax.errors import UsageError
from covjax.runtime.signals import Interrupted
from experiments import at_once, cluster, run
from experiments.ablations import EXPERIMENTS
from experiments.at_once import run_here, share_machine
from experiments.child import (
    Busy,
    Child,
    is_finished,
    last_words,
    read_record,
    write_record,
)
from experiments.cluster import run_on_cluster
from experiments.plan import Plan, Run, make_plan
from processes import is_there, wait_until

PROJECT = Path(__file__).parents[1]

# Stands in for a training: FOLDER EVENTS BEHAVIOUR. The config lies ready beside it.
STAND_IN = """
import os, signal, sys, time
from pathlib import Path
folder, events, behaviour = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
def tell(what):
    with events.open("a") as out:
        out.write(f"{what} {folder.name}\\n")
def stop(number, _):
    tell(f"signal{number}")
    print("a checkpoint is written", flush=True)
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
tell("start")
if behaviour == "interrupts":  # whoever started it, then goes on
    os.kill(os.getppid(), signal.SIGTERM)
if behaviour in ("hangs", "interrupts"):
    time.sleep(60)
if behaviour == "together":  # not before another one is at work, too
    while events.read_text().count("start infection") < 2:
        time.sleep(0.02)
if behaviour == "fails":
    print("first line\\nout of memory: 3 GiB\\n", flush=True)
    sys.exit(1)
folder.mkdir()
os.rename(f"{folder}.ready", folder / "config.json")
(folder / "results").mkdir()
if behaviour != "forgets":
    (folder / "results" / "val.json").touch()
    (folder / "report.html").touch()
    (folder / "metrics.jsonl").write_text('{"step": 3, "split": "val"}\\n' * 2)
tell("end")
"""


@dataclasses.dataclass
class Stage:
    """A plan of runs that behave as told."""

    folder: Path
    plan: Plan
    said: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        """Writes the program; all runs work."""
        self.script = self.folder / "stand_in.py"
        self.script.write_text(STAND_IN)
        self.events_file = self.folder / "events"
        self.events_file.touch()
        self.runs = [self.make(run, "works") for run in self.plan.runs]

    def make(self, run: Run, behaviour: str) -> Run:
        run.folder.parent.mkdir(parents=True, exist_ok=True)
        save_config(run.config, Path(f"{run.folder}.ready"), {})
        words = (self.script, run.folder, self.events_file, behaviour)
        return dataclasses.replace(run, command=tuple(map(str, words)))

    def behave(self, label: str, behaviour: str) -> Run:
        k = next(k for k, run in enumerate(self.runs) if run.label == label)
        self.runs[k] = self.make(self.runs[k], behaviour)
        return self.runs[k]

    def events(self) -> list[str]:
        return self.events_file.read_text().splitlines()

    def go(self, jobs: int = 1) -> list[str]:
        failed = run_here(self.runs, jobs=jobs, say=self.said.append)
        return [run.label for run in failed]


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.setattr(at_once, "_PAUSE", 0.01)
    monkeypatch.setattr(cluster, "_PAUSE", 0.01)
    experiment = EXPERIMENTS["smoke"]
    plan = make_plan(
        experiment, arms=list(experiment.arms), seeds=1, variant="phantom",
        settings={}, out=tmp_path,
    )  # fmt: skip
    return Stage(tmp_path, plan)


def test_runs_go_in_order_and_what_is_finished_is_not_run_again(stage):
    assert stage.go() == []
    names = [run.folder.name for run in stage.runs]
    assert stage.events() == [f"{w} {n}" for n in names for w in ("start", "end")]
    assert all(map(is_finished, stage.runs))
    assert stage.said[1].startswith("[1/3] finished  stage 1 of hybrid .5, seed 0: ")
    assert "2 left, about" in stage.said[1]
    before = [read_record(run) for run in stage.runs]
    assert [set(record) for record in before] == [
        {"minutes", "machines", "at_once"}
    ] * 3
    stage.said.clear()
    assert stage.go() == []
    assert stage.said == ["3 of 3 runs were finished before"]
    assert len(stage.events()) == 6
    assert [read_record(run) for run in stage.runs] == before


def test_two_jobs_are_at_work_at_once_but_not_before_their_stage_1(stage):
    for label in ("hybrid .5, seed 0", "BCE, seed 0"):
        stage.behave(label, "together")  # with one job it would wait for ever
    assert stage.go(jobs=3) == []
    lung = stage.runs[0].folder.name
    assert stage.events()[:2] == [f"start {lung}", f"end {lung}"]
    assert read_record(stage.runs[1])["at_once"] == 3


def test_a_run_that_fails_costs_that_run_alone(stage):
    run = stage.behave("hybrid .5, seed 0", "fails")
    assert stage.go() == ["hybrid .5, seed 0"]
    assert is_finished(stage.runs[2])
    said = next(line for line in stage.said if "FAILED" in line)
    assert f"hybrid .5, seed 0: exit status 1, see {run.log}" in said
    assert said.endswith("out of memory: 3 GiB")  # the last line that says something
    # Mended, the same command runs that one, and its minutes add up.
    write_record(run, minutes=5.0)
    stage.behave("hybrid .5, seed 0", "works")
    assert stage.go() == []
    assert read_record(run)["minutes"] > 5
    assert last_words(run.log) == "out of memory: 3 GiB"  # the log is kept


def test_a_run_without_results_has_failed_whatever_its_exit_status(stage):
    stage.behave("BCE, seed 0", "forgets")
    assert stage.go() == ["BCE, seed 0"]
    assert "exit status 0" in stage.said[-1]


def test_arms_of_a_failed_stage_1_are_not_started(stage):
    stage.behave("stage 1 of hybrid .5, seed 0", "fails")
    assert sorted(stage.go(2)) == [
        "BCE, seed 0", "hybrid .5, seed 0", "stage 1 of hybrid .5, seed 0",
    ]  # fmt: skip
    assert len(stage.events()) == 1
    assert any("its run of stage 1 failed" in line for line in stage.said)


def test_a_signal_is_passed_on_once_and_nothing_else_starts(stage):
    run = stage.behave("stage 1 of hybrid .5, seed 0", "interrupts")
    with pytest.raises(
        Interrupted, match="3 of 3 runs are left; the same com"
    ) as raised:
        stage.go()
    assert raised.value.exit_status == 143
    name = run.folder.name
    assert stage.events() == [f"start {name}", f"signal15 {name}"]
    assert last_words(run.log) == "a checkpoint is written"
    assert read_record(run)["minutes"] > 0


def test_a_run_at_which_another_process_works_is_waited_for(stage):
    run = stage.behave("stage 1 of hybrid .5, seed 0", "hangs")
    other = Child(run)
    try:
        with pytest.raises(Busy):
            Child(run)
        stage.behave("stage 1 of hybrid .5, seed 0", "works")

        def say(text: str) -> None:
            stage.said.append(text)
            if "waits" in text:
                other.end()

        assert run_here(stage.runs, jobs=2, say=say) == []
    finally:
        other.end()
    assert sum("another process is at work on it" in line for line in stage.said) == 1


def test_the_lock_outlives_the_one_that_started_the_run(stage):
    run = stage.behave("BCE, seed 0", "hangs")
    code = (
        "import os, pickle, sys, time\n"
        "from experiments.child import Child\n"
        "child = Child(pickle.load(sys.stdin.buffer))\n"
        "print(child._process.pid, flush=True)\n"
        "os._exit(0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(run), cwd=PROJECT,
        stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    orphan = int(done.stdout)
    try:
        with pytest.raises(Busy):
            Child(run)
    finally:
        os.kill(orphan, signal.SIGKILL)
    assert wait_until(lambda: not is_there(orphan))  # it is dying
    Child(run).end()


def test_evaluation_that_was_cut_off_is_not_finished(stage):
    run = stage.runs[0]
    assert not is_finished(run)
    stage.go()
    assert is_finished(run)
    (run.folder / "report.html").unlink()  # the page is written last
    assert not is_finished(run)


def test_training_that_was_stopped_is_not_finished_by_an_evaluation(stage):
    run = stage.runs[0]
    stage.go()
    assert run.config.train.epochs == 2
    lines = ['{"split": "val"}', '{"split": "train"}', '{"split": "train"}']
    (run.folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert not is_finished(run)


def test_a_folder_of_another_config_is_refused(stage):
    stage.go()
    run = stage.runs[0]
    run.config.optim.lr = 1.0
    with pytest.raises(UsageError, match="config.optim.lr"):
        is_finished(run)


def test_the_machine_is_dealt_out(monkeypatch):
    monkeypatch.setattr(at_once, "_numbers", lambda device: [])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(at_once, "_cores", lambda: [0, 1, 2, 5, 6])
    assert share_machine(1)[0].cores == frozenset()  # all, as they come
    assert [set(s.cores) for s in share_machine(2)] == [{0, 2, 6}, {1, 5}]
    assert {s.cores for s in share_machine(6)[5:]} == {frozenset({0, 1, 2, 5, 6})}
    gpus = {"/dev/nvidia": ["0", "1", "2"]}
    monkeypatch.setattr(at_once, "_numbers", lambda device: gpus.get(device, []))
    two = [s.environment for s in share_machine(2)]
    assert two == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    assert share_machine(1)[0].environment == {}
    with pytest.raises(UsageError, match="--jobs=4: this machine has 3 accel"):
        share_machine(4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,7")  # those that were given to us
    assert share_machine(2)[1].environment == {"CUDA_VISIBLE_DEVICES": "7"}
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert share_machine(4)[0].environment == {}
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    chips = {"/dev/accel": ["0", "1"]}
    monkeypatch.setattr(at_once, "_numbers", lambda device: chips.get(device, []))
    one = share_machine(2)[1].environment
    assert (one["TPU_VISIBLE_CHIPS"], one["TPU_PROCESS_BOUNDS"]) == ("1", "1,1,1")


def test_a_child_has_its_share(stage):
    run = stage.make(stage.runs[0], "hangs")
    cores = os.sched_getaffinity(0)
    child = Child(run, environment={"COVJAX_SHARE": "7"}, cores=[min(cores)])
    try:
        pid = child._process.pid
        assert os.sched_getaffinity(pid) == {min(cores)}
        # Until the program is loaded.
        assert wait_until(lambda: "start" in stage.events_file.read_text())
        told = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        assert b"COVJAX_SHARE=7" in told
    finally:
        child.end()


def test_jobs_of_processes_that_stand_in_for_a_cluster(stage):
    stage.behave("BCE, seed 0", "fails")
    failed = run_on_cluster(
        stage.runs, kind="submitit-local", parameters={}, folder=stage.folder / "jobs",
        say=stage.said.append,
    )  # fmt: skip
    assert [run.label for run in failed] == ["BCE, seed 0"]
    assert is_finished(stage.runs[0]) and is_finished(stage.runs[1])
    lung = stage.runs[0].folder.name
    assert stage.events()[:2] == [f"start {lung}", f"end {lung}"]
    assert any("out of memory: 3 GiB" in line for line in stage.said)


# Where sbatch puts a job whose run lies ready, it is finished at once; sacct says that
# job 7 is at work, and that every other one has failed.
SBATCH = """#!/bin/sh
n=$(( $(ls $HERE/submitted | wc -l) + 101 ))
cp "$1" $HERE/submitted/$n
name=$(sed -n 's/^#SBATCH --job-name=//p' "$1")
if [ -d "$HERE/ready/$name" ]; then cp -r "$HERE/ready/$name" "$HERE/runs/$name"; fi
mkdir -p $HERE/jobs/$n && touch $HERE/jobs/$n/${n}_0_result.pkl
echo "Submitted batch job $n"
"""
SACCT = """#!/bin/sh
echo "JobID|State|NodeList"
echo "7|RUNNING|node"
mkdir -p $HERE/jobs/7 && touch $HERE/jobs/7/7_0_result.pkl
cp -r $HERE/ready/$JOB_7 $HERE/runs/ 2> $HERE/sacct.log
"""


def test_jobs_of_slurm_depend_on_their_stage_1(stage, monkeypatch):
    for name, text in (("sbatch", SBATCH), ("sacct", SACCT), ("srun", "#!/bin/sh\n")):
        path = stage.folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    (stage.folder / "submitted").mkdir()
    lung, base, bce = stage.runs
    for one in (lung, base, bce):
        ready = stage.folder / "ready" / one.folder.name
        (ready / "results").mkdir(parents=True)
        os.rename(f"{one.folder}.ready", ready / "config.json")
        (ready / "results" / "val.json").touch()
        (ready / "report.html").touch()
        (ready / "metrics.jsonl").write_text('{"step": 3, "split": "val"}\n' * 2)
    write_record(bce, job="7")  # of an earlier call: it is not submitted again
    monkeypatch.setenv("HERE", str(stage.folder))
    monkeypatch.setenv("JOB_7", bce.folder.name)
    monkeypatch.setenv("PATH", f"{stage.folder / 'bin'}:{os.environ['PATH']}")
    failed = run_on_cluster(
        stage.runs, kind="slurm", folder=stage.folder / "jobs", say=stage.said.append,
        parameters={"partition": "gpu", "gpus_per_node": 1, "timeout_min": 90},
    )  # fmt: skip
    assert failed == []
    texts = [p.read_text() for p in sorted((stage.folder / "submitted").iterdir())]
    assert len(texts) == 2
    assert "--dependency" not in texts[0]
    assert "#SBATCH --dependency=afterok:101" in texts[1]
    for text in texts:
        for flag in ("partition=gpu", "gpus-per-node=1", "time=90"):
            assert f"#SBATCH --{flag}\n" in text
        assert "#SBATCH --kill-on-invalid-dep=yes" in text
    assert any("job 7, of an earlier call" in line for line in stage.said)
    assert read_record(base)["job"] == "102"


def test_a_job_whose_time_is_up_writes_a_checkpoint_and_comes_back(stage):
    run = stage.behave("BCE, seed 0", "hangs")
    job = cluster.Job(run)
    job._child = Child(run)
    assert wait_until(lambda: "start" in stage.events_file.read_text())
    again = job.checkpoint()
    assert stage.events() == [f"{w} {run.folder.name}" for w in ("start", "signal15")]
    stage.behave("BCE, seed 0", "works")
    assert isinstance(again.function, cluster.Job)
    assert again.function._run.folder == run.folder


@pytest.mark.parametrize(
    ("kind", "parameters", "said"),
    [
        ("slurm", {"partitoin": "gpu"}, "partitoin"),
        ("submitit-local", {"nodes": 2}, "only one node"),
    ],
)
def test_a_wrong_parameter_of_the_jobs_is_named(
    kind, parameters, said, tmp_path, monkeypatch
):
    srun = tmp_path / "srun"
    srun.touch(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(UsageError, match=f"--executor={kind}: .*{said}"):
        cluster.make_executor(kind, parameters, tmp_path)


def test_without_slurm_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="srun"):
        cluster.make_executor("slurm", {}, tmp_path)


def test_without_a_name_it_lists_the_experiments(capsys):
    assert run.main([]) == 0
    out = capsys.readouterr().out
    for name, experiment in EXPERIMENTS.items():
        assert f"{name}: {experiment.question}" in out
        assert f"{experiment.baseline} (baseline)" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lsos"], "no experiment 'lsos'; there are roi, transfer, loss,"),
        (["loss", "--arms=BCE,focla"], "--arms: no arm 'focla'; there are hybrid .5,"),
        (["loss", "--seeds=0"], "--seeds=0: must be at least 1"),
        (["loss", "--seeds=many"], "argument --seeds: invalid int value: 'many'"),
        (["loss", "--jobs=0"], "--jobs=0: must be at least 1"),
        (["loss", "--set", "data.size=3"], "no such config field: data.size"),
        (["loss", "--set", "data.size"], "--set data.size: not FIELD=VALUE"),
        (["loss", "--variant=huge"], "--variant: no variant 'huge'"),
        (["loss", "--executor=pbs"], "argument --executor: invalid choice: 'pbs'"),
        (["loss", "--slurm=gpu", "--executor=slurm"], "--slurm: 'gpu' is not KEY="),
        (["loss", "--slurm=partition=gpu"], "--slurm needs --executor=slurm"),
        (["loss", "--table"], "no run of loss is finished: no table"),
        (["loss", "more"], "unrecognized arguments: more"),
    ],
)
def test_what_is_wrong_is_said_in_a_line_and_nothing_is_started(
    words, said, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert run.main(words) == 2
    out, err = capsys.readouterr()
    assert said in err and err.count("\n") == 1 and out == ""
    assert list(tmp_path.iterdir()) == []


def test_arms_that_are_asked_for_bring_the_baseline():
    loss = EXPERIMENTS["loss"]
    assert run._choose_arms(loss, "BCE, focal,BCE") == ["hybrid .5", "BCE", "focal"]
    assert run._choose_arms(loss, None) == list(loss.arms)


def start(cwd: Path, *words: str, **environment: str) -> subprocess.Popen:
    env = os.environ | {"PYTHONPATH": str(PROJECT), "JAX_PLATFORMS": "cpu"}
    env |= environment
    for name in ("XLA_FLAGS", "COVJAX_DATA"):
        env.pop(name, None)
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.run", "smoke", "--seeds=1", *words],
        cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_smoke_killed_in_the_middle_goes_on_and_ends_with_the_table(tmp_path):
    """Three trainings of phantoms, for real: stage 1, two arms, one seed."""
    first = start(tmp_path, "--jobs=2")
    folder = tmp_path / "runs/experiments/runs"
    while not list(folder.glob("infection*/config.json")):  # an arm is at work
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    _, err = first.communicate(timeout=300)
    assert first.returncode == 143, err
    told = re.search(r"(\d) of 3 runs are left; the same command goes on", err)
    assert told, err
    left = int(told[1])  # an arm may have ended before the signal came
    assert left in (1, 2)
    assert not (tmp_path / "runs/experiments/smoke").exists()

    def runs(pattern: str) -> list[Path]:
        return [path for path in folder.glob(pattern) if path.is_dir()]

    (lung,) = runs("lung*")
    pages = lung / "report.html"
    before = pages.stat().st_mtime_ns
    out, err = start(tmp_path, "--jobs=2").communicate(timeout=300)
    assert f"{3 - left} of 3 runs were finished before" in out, (out, err)
    assert pages.stat().st_mtime_ns == before
    table = (tmp_path / "runs/experiments/smoke/table.md").read_text()
    for said_there in ("PHANTOM", "| hybrid .5 (baseline) |", "| BCE ", "of Val"):
        assert said_there in table
    assert "Missing" not in table and "| difference |" in out
    assert (tmp_path / "runs/experiments/smoke/table.csv").exists()
    assert (tmp_path / "runs/experiments/smoke/table.png").exists()
    # Both arms started from the one run of stage 1, and nobody has read Test.
    for arm in runs("infection*"):
        config = json.loads((arm / "config.json").read_text())
        assert config["init_from"] == os.path.relpath(lung, tmp_path)
        assert not list(arm.glob("results/test*"))
        assert (arm / "results/val-predicted.csv").exists()
    # With a seed more there is no table of it, but of what is finished.
    more = start(tmp_path, "--table", "--seeds=2")
    out, err = more.communicate(timeout=300)
    assert more.returncode == 0, err
    assert "missing: hybrid .5, seed 1; BCE, seed 1" in out
    shutil.rmtree(tmp_path / "runs")
