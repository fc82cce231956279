"""Overrides of the command line that make a run of a fraction of a second."""

SMALL = [
    "strategy=finetune",
    "model.hidden=[8]",
    "trainer.epochs=null",
    "trainer.max_steps_per_task=2",
    "evaluator.every=0",
    "record.figure=false",
    "record.report=false",
    "progress=false",
    "device=cpu",
]
