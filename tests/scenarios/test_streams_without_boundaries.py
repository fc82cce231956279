"""Every method that says it needs no boundaries, on streams that tell of none and in which classes return."""

import pytest
import torch

from clbench.registry import STRATEGIES
from clbench.testing.stepping import fit_until

STREAMS = {
    "blurry": ["scenario=blurry_digits"],
    "repetition": ["scenario=class_repetition_digits", "scenario.experiences=8", "scenario.boundaries=hidden"],
    "drift": ["scenario=split_digits", "scenario.drift=0.5", "scenario.boundaries=hidden", "scenario.tasks=3"],
}
ONLINE = ["trainer.epochs=1", "trainer.max_steps_per_task=null", "trainer.batch_size=20", "trainer.steps_per_batch=2",
          "trainer.reset_optimizer=false", "trainer.scheduler=constant"]  # fmt: skip
OPTIONS = {
    "er": ["strategy.update=step", "strategy.selection=reservoir"],
    "slda": ["strategy.extractor=frozen"],
    "acil": ["strategy.extractor=frozen"],
    "fecam": ["strategy.extractor=frozen"],
    "igmn": ["strategy.extractor=frozen"],
}
QUICK = {("er", "blurry"), ("gss", "repetition"), ("slda", "drift"), ("cope", "repetition"), ("derpp", "drift")}
FREE = [
    name for name in STRATEGIES.names() if not (STRATEGIES[name].needs.boundaries or STRATEGIES[name].needs.transformer)
]
CASES = [
    pytest.param(name, stream, marks=() if (name, stream) in QUICK else pytest.mark.slow)
    for name in FREE
    for stream in STREAMS
]


@pytest.mark.parametrize(("name", "stream"), CASES)
def test_a_method_without_boundaries_runs_and_resumes_there(name, stream, small_trainer):
    memory = ["strategy.memory_size=30"] if STRATEGIES[name].needs.memory else []
    options = [*STREAMS[stream], *ONLINE, f"strategy={name}", *memory, *OPTIONS.get(name, [])]
    whole = small_trainer(*options, checkpoint="whole")
    whole.fit()
    assert whole.curve.loss.notna().all()
    seen = whole.evaluator.seen
    assert seen.classes.is_monotonic_increasing
    assert seen.classes.iloc[-1] == whole.scenario.n_classes
    fit_until(small_trainer(*options, "record.checkpoint_seconds=0", checkpoint="killed"), whole.iteration // 2)
    resumed = small_trainer(*options, checkpoint="killed")
    resumed.fit()
    assert resumed.curve.equals(whole.curve)
    assert resumed.evaluator.seen.equals(seen)
    states = whole.learner.state_dict(), resumed.learner.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
