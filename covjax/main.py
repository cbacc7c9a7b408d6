"""Flags, then one call.

python -m covjax.main --config=configs/lung.py --workdir=runs/lung
python -m covjax.main --config=configs/infection.py --init_from=runs/lung
python -m covjax.main --mode=evaluate --workdir=runs/lung --split=val
"""

from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from covjax.errors import UsageError
from covjax.process_consistency import check_same_start
from covjax.run import evaluate_run, train_and_evaluate
from covjax.runtime import distributed
from covjax.runtime.compilation_cache import keep_compiled
from covjax.runtime.exit_messages import tell
from covjax.runtime.flags import parse
from covjax.runtime.signals import Interrupted, raise_signals
from covjax.train import run_folder

_CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Run's folder; default runs/STAGE-TIME")
_INIT_FROM = flags.DEFINE_string("init_from", None, "Run or checkpoint to start from")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "evaluate"], "What to do")
_SPLIT = flags.DEFINE_enum("split", "test", ["train", "val", "test"], "To evaluate")
# Several processes as one run; a cluster that JAX knows needs none of these.
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0")
_COUNT = flags.DEFINE_integer("num_processes", None, "How many processes the run has")
_RANK = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0")


def _main(_: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    keep_compiled()
    distributed.join(_COORDINATOR.value, _COUNT.value, _RANK.value)
    config, workdir = _CONFIG.value, _WORKDIR.value
    if config is not None and _INIT_FROM.value is not None:
        config.init_from = _INIT_FROM.value
    flags_given = {flag.name: flag.value for flag in (_MODE, _WORKDIR, _SPLIT)}
    check_same_start(flags_given, config)
    if _MODE.value == "evaluate":
        if not workdir:
            raise UsageError("--mode=evaluate needs --workdir, the run to evaluate")
        return evaluate_run(Path(workdir), _SPLIT.value.capitalize(), config)
    if config is None:
        raise UsageError("--config is missing, for example --config=configs/lung.py")
    split = _SPLIT.value.capitalize()
    if workdir:
        return train_and_evaluate(config, Path(workdir), split)
    with run_folder.new_folder(config) as folder:
        train_and_evaluate(config, folder, split)


if __name__ == "__main__":
    try:
        with raise_signals():
            app.run(_main, flags_parser=lambda argv: parse(argv, _CONFIG))
    except (Exception, Interrupted, KeyboardInterrupt) as error:
        distributed.leave(tell(error))
