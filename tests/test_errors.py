"""Wrong input is answered in one sentence with the valid choices, before anything is trained or written."""

import json
import subprocess
import sys

import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf
from small_commands import SMALL

from clbench.command_line.arguments import taken_apart
from clbench.command_line.checks import check_overrides, checked
from clbench.command_line.help import COMMANDS
from clbench.compose import compose, store_schemas
from clbench.errors import ConfigError, DataError, TestStreamLocked
from clbench.learning.base import Needs
from clbench.registry import STRATEGIES
from clbench.run import run
from clbench.strategies.finetune import Finetune


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["strategy.lam=-1"], "strategy.lam=-1.0 is out of range: it has to be at least 0"),
        (["strategy.lam=nan"], "strategy.lam=nan is out of range"),
        (["strategy.fisher=emprical"], "did you mean 'empirical'"),
        (["trainer.lr=0"], "trainer.lr=0.0 is out of range: it has to be above 0"),
        (["trainer.batch_size=0"], "trainer.batch_size=0 is out of range"),
        (["trainer.epochs=null"], "both null"),
        (["trainer.optimizer=sgdd"], "did you mean 'sgd'"),
        (["scenario.increment=3"], "does not divide the 10 classes of digits. Valid choices: 1, 2, 5, 10"),
        (["scenario.base=4", "scenario.increment=4"], "does not divide the 6 classes of digits after base=4"),
        (["scenario.class_order=[0,1,1,2,3,4,5,6,7,8]"], "exactly once"),
        (["scenario.class_order=sorted"], "Valid choices: natural, shuffled"),
        (["scenario.source=digit"], "unknown data source 'digit': did you mean 'digits'?"),
        (["strategy=er", "strategy.memory_size=5"], "at least 10"),
        (["strategy=gem", "strategy.memory_size=5"], "at least 10"),
        (
            ["strategy=er", "strategy.update=step", "strategy.selection=task_balanced"],
            "not defined for strategy.selection=task_balanced",
        ),
        (["strategy=er", "strategy.selection=reservoir", "strategy.share=stream"], "share=stream has no meaning"),
        (["strategy=er", "strategy.mixing=data_set"], "strategy.weighting=fixed contradicts"),
        (["strategy=er", "strategy.plus=[joint]"], "er and joint cannot be combined"),
        (["strategy=gem", "strategy.plus=[agem]"], "gem and agem cannot be combined"),
        (["strategy=er", "strategy.plus=[ewcc]"], "did you mean 'ewc'"),
        (["strategy=er", "strategy.plus=[er]"], "names er twice"),
        (["strategy=er", "+plus.ewc.lam=3"], "does not name it"),
        (["strategy=er", "strategy.plus=[ewc]", "+plus.ewc.lamm=3"], "plus.ewc: Key 'lamm' not in"),
        (["strategy=er", "strategy.plus=[ewc]", "+plus.ewc.lam=-3"], "plus.ewc.lam=-3.0 is out of range"),
        (["evaluator.split=validation"], "needs scenario.validation above 0"),
        (["data.placement=mmap"], "data.placement=mmap"),
        (
            ["scenario.mean=[0.4,0.4,0.4]"],
            "scenario.mean=[0.4, 0.4, 0.4] has 3 values, and the images have one channel",
        ),
        (["scenario.std=[]"], "scenario.std=[] has 0 values"),
        (["scenario.std=[0.0]"], "scenario.std=[0.0] is of pixels scaled to [0, 1]: every value has to be above 0"),
        (["scenario.mean=[118.0]"], "divide by 255 where it is of levels from 0 to 255"),
        (["scenario.increment=1", "scenario.logit_scope=current"], "the loss over its one logit is always 0"),
        (["scenario=split_digits_task", "scenario.increment=1"], "has one class, so that every answer is right"),
        (["scenario.classes=[3]", "scenario.increment=1"], "has one class, so that every answer is right"),
        (["device=cuda"], "Valid choices here: auto, cpu"),
    ],
)
def test_one_sentence(overrides, sentence, small_setup):
    if overrides == ["device=cuda"] and __import__("torch").cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(ConfigError) as error:
        small_setup(*[o for o in overrides if o != "trainer.epochs=null"],
                    *(["trainer.epochs=null", "trainer.max_steps_per_task=null"] if "both null" in sentence else []))  # fmt: skip
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("strategy=ewcc", "unknown strategy 'ewcc': did you mean 'ewc'?"),
        ("strategy=ewc,l3", "unknown strategy 'l3'"),
        ("scenario=split_digit", "did you mean 'split_digits'?"),
        ("model=mlpp", "did you mean 'mlp'?"),
        ("lst", "unknown command 'lst': did you mean 'list'?"),
    ],
)
def test_misspelt_names(argument, sentence):
    store_schemas()
    with pytest.raises(ConfigError) as error:
        checked(taken_apart(["-m", argument], COMMANDS))
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("strategy.lan=3", "unknown option of strategy 'lan': did you mean 'lam'? Valid choices: decay, "),
        ("trainer.leaning_rate=3", "unknown option of trainer 'leaning_rate': "),
        ("scenario.augment.flp=true", "unknown option of scenario.augment 'flp': did you mean 'flip'?"),
        ("trainer.epochs=many", "trainer.epochs=many: the value has to be a whole number or null"),
    ],
)
def test_misspelt_and_mistyped_options(override, sentence):
    with pytest.raises(ConfigError) as error:
        check_overrides([override, "seed=1"])
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_good_names_pass():
    store_schemas()
    words = ["-m", "strategy=ewc,l2", "scenario=split_digits", "seed=0,1", "hydra.sweep.dir=a/b"]
    assert checked(taken_apart(words, COMMANDS))[0] == words[1:]


def test_missing_data_say_which_file_belongs_where(tmp_path, small_setup):
    with pytest.raises(DataError) as error:
        small_setup("scenario.source=cifar100", "scenario.increment=10", f"data.root={tmp_path}", "data.download=false")
    assert "cifar-100-python" in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_strategy_that_needs_the_task_is_refused_where_it_is_hidden(small_setup, monkeypatch):
    class NeedsTask(Finetune):
        needs = Needs(settings=("task",))

    monkeypatch.setitem(STRATEGIES._entries, "finetune", NeedsTask)
    with pytest.raises(ConfigError, match="not defined for class-incremental scenarios such as split_digits"):
        small_setup("strategy=finetune")


def test_tuning_has_no_handle_to_the_test_stream(small_setup):
    setup = small_setup("scenario.validation=0.2", "evaluator.split=validation")
    assert setup.evaluator.split is setup.scenario.validation
    with pytest.raises(TestStreamLocked, match="locked while tuning"):
        _ = setup.scenario.test


def test_a_finished_run_is_not_overwritten(tmp_path):
    config = compose(["trainer.max_steps_per_task=1", "record.figure=false", "progress=false", "strategy=finetune"])
    before = run(config, tmp_path)
    with pytest.raises(ConfigError, match="already holds a finished run"):
        run(config, tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text()) == before


def test_a_checkpoint_is_not_continued_under_another_configuration(tmp_path, monkeypatch):
    """Else one seed's weights would be recorded as another's."""
    options = ["strategy=finetune", "debug=fast", "record.figure=false", "progress=false"]
    monkeypatch.setattr("clbench.training.trainer.Trainer.fit", lambda self: (self.save(), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        run(compose(options), tmp_path)
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="unfinished run of another configuration"):
        run(compose([*options, "seed=5"]), tmp_path)
    assert OmegaConf.load(tmp_path / "config.yaml").seed == 0
    assert run(compose(options), tmp_path)["status"] == "finished"


@pytest.mark.parametrize("override", ["+foo=1", "+strategy.lan=3", "+trainer.foo=1"])
def test_an_added_key_that_nothing_reads_is_refused(override, small_setup):
    with pytest.raises((ConfigError, HydraException), match=r"foo|lan"):
        small_setup(override)


def test_diverged_run_is_recorded_and_cut_at_the_last_sound_step(tmp_path):
    options = [
        "strategy=finetune",
        "trainer.lr=1e18",
        "trainer.max_steps_per_task=30",
        "record.figure=false",
        "progress=false",
    ]
    summary = run(compose(options), tmp_path)
    assert summary["status"] == "diverged"
    assert "became" in summary["reason"]
    training = __import__("pandas").read_parquet(tmp_path / "training.parquet")
    curve = __import__("pandas").read_parquet(tmp_path / "curve.parquet")
    assert curve.iteration.max() < training.iteration.max()
    assert OmegaConf.load(tmp_path / "config.yaml").trainer.lr == 1e18


def test_command_line_prints_the_sentence_and_no_traceback(tmp_path):
    """In a process of its own, as users start it."""
    command = [sys.executable, "-m", "clbench", "strategy.lam=-1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2
    assert done.stderr.strip() == "clbench: strategy.lam=-1.0 is out of range: it has to be at least 0"


def test_a_sweep_outlives_a_failed_run(clb, tmp_path):
    status, _, errors = clb("-m", "scenario.increment=2,3,5", *SMALL, "hydra.sweep.dir=sweep")
    assert status == 1
    statuses = [json.loads((tmp_path / "sweep" / str(i) / "summary.json").read_text())["status"] for i in range(3)]
    assert statuses == ["finished", "failed", "finished"]
    assert "does not divide" in errors


def test_a_failed_run_is_recorded_with_the_kind_of_its_error(tmp_path):
    """By which a study tells what it need not try again."""
    with pytest.raises(ConfigError):
        run(compose(["scenario.increment=3", "progress=false"]), tmp_path)
    recorded = json.loads((tmp_path / "summary.json").read_text())
    assert recorded["status"] == "failed"
    assert recorded["reason"].startswith("ConfigError: ")
