"""Strategies combined through ``strategy.plus``: every pair, and what every strategy shares."""

import dataclasses

import pytest
import torch

from clbench.config import StrategyConfig
from clbench.errors import ConfigError
from clbench.learning.base import Needs, Strategy
from clbench.learning.composition import refuse
from clbench.learning.traits import CONFLICTS, TRAITS, traits_of
from clbench.registry import STRATEGIES
from clbench.testing.pairs import base_config, check_acts, check_sentence, network_for, options_of, trained, try_pair

NAMES = STRATEGIES.names()

FRESH_ADAPTERS = {"inc_lora", "o_lora", "reglora"}
MERGED = {"inflora", "n_lora", "osft"} | FRESH_ADAPTERS
LORA = {"lora", "ilora"} | MERGED
PROMPTS = {"coda_prompt", "dualprompt", "l2p", "oneprompt", "ovor"}
CLOSED_FORM = {"acil", "fecam", "if2net", "igmn", "ranpac", "slda"}
NETWORK_PER_TASK = {"dst", "hypernetwork", "packnet", "separate"}
RESETS = {"continual_backprop", "redo"}
OUTLIERS = {"outliers", "ovor"}
OF_WEIGHTS = {"l2", "l2_init", "spectral", "wasserstein"}
IMPORTANCE = {"ewc", "mas", "rwalk", "si"}
NO_HEAD = {"cope", "scr"}
OWN_LOSS = NO_HEAD | {
    *("cls_er", "der", "der_expandable", "derpp", "dgr", "eeil", "er", "er_ace"),
    *("gdumb", "grpo", "gss", "icarl", "ilora", "joint", "mer", "predkd"),
}
PROJECTS = {"agem", "gem", "mir", "owm"}
MOVES = RESETS | {"shrink_perturb"}
ALL = set(NAMES)
MAY_BE_TRAINED_FIRST = OF_WEIGHTS | {"l2p", "lora", "n_lora", "oneprompt", "osft"}

REFUSED = [
    (LORA | PROMPTS, LORA | PROMPTS, "each of them freezes the network and trains what it puts into it"),
    (NETWORK_PER_TASK, {"cls_er", "icarl", "ilora"} | NO_HEAD, "each of them decides"),
    (NETWORK_PER_TASK, LORA | PROMPTS, "makes a network for every task"),
    ({"packnet", "separate"}, PROJECTS, "makes a network for every task"),
    (NETWORK_PER_TASK, NETWORK_PER_TASK | CLOSED_FORM | PROJECTS, "each of them decides"),
    ({"predkd"}, {"dst", "packnet", "separate"}, "the second for"),
    (
        {"hypernetwork"},
        OWN_LOSS - NO_HEAD - {"cls_er", "icarl", "ilora"},
        "each of them decides the loss",
    ),
    ({"hypernetwork"}, OF_WEIGHTS | MOVES | IMPORTANCE, "leaves none that are trained"),
    (NETWORK_PER_TASK, ALL - OF_WEIGHTS, "makes a network for every task, which"),
    (CLOSED_FORM, CLOSED_FORM, "each of them decides what is learned without gradients"),
    (CLOSED_FORM, {"cls_er", "icarl", "ilora"} | NO_HEAD, "each of them decides the prediction"),
    (CLOSED_FORM, FRESH_ADAPTERS, "does not act before the second"),
    (CLOSED_FORM, ALL - MAY_BE_TRAINED_FIRST, "learns without gradients and in one pass"),
    (OWN_LOSS, OWN_LOSS, "each of them decides the loss"),
    (PROJECTS, PROJECTS, "each of them decides the gradient's projection"),
    ({"gss"}, {"agem", "gem", "mir"}, "which stored samples a step looks at"),
    ({"gdumb"}, {"agem", "gem", "mir"}, "looks at samples that it stores beside it"),
    ({"gdumb"}, {"continual_backprop", "owm"} | IMPORTANCE, "what single ones were worth"),
    ({"gdumb"}, {"featkd", "lwf"}, "holds on to what the network was before"),
    ({"gdumb"}, MERGED, "merges what a task has learned into frozen weights"),
    ({"mer"}, MOVES, "changes weights beside them"),
    (RESETS, LORA | PROMPTS, "resets hidden units"),
    ({"owm"}, LORA | PROMPTS, "trains the head alone"),
    ({"der_expandable"}, LORA | PROMPTS, "adds to a network that"),
    ({"der_expandable"}, OF_WEIGHTS | MOVES | IMPORTANCE | {"owm"}, "acts on the same ones in all tasks"),
    ({"der_expandable"}, {"featkd", "lwf"}, "keeps a network like the present one"),
    ({"der_expandable"}, {"outliers"}, "keeps some of a fixed number"),
    (
        NO_HEAD,
        {"agem", "ewc", "gem", "lwf", "mas", "mir", "outliers", "ovor", "rif", "rwalk"},
        "leaves the network's head as it is",
    ),
    (NO_HEAD, RESETS, "leaves the network's head as it is"),
    ({"owm"}, {"shrink_perturb"}, "as weight decay does"),
    (IMPORTANCE | {"cls_er"}, MERGED, "anew for every task"),
    (OUTLIERS, MOVES, "changes the weights behind them"),
    (OUTLIERS, OUTLIERS, "each of them trains the head against virtual outliers"),
    (OUTLIERS, {"gdumb", "joint"}, "trains on those of earlier tasks"),
    ({"rif"}, {"der_expandable", "eeil", "gdumb", "icarl", "joint"}, "makes batches of its own"),
]
"""Pairs that are refused, of one set with the other in either order, and a part of the sentence; the first that fits counts."""

SAME_AS_ONE_ALONE = ("finetune",)
"""Strategies that change nothing beside another one: this one adds nothing to any other."""


def refusal(first: str, second: str) -> str | None:
    """A part of the sentence by which the pair is refused, in this order; None where it is accepted."""
    for one, other, part in REFUSED:
        if (first in one and second in other) or (second in one and first in other):
            return part
    if second in LORA | PROMPTS:
        return "puts modules into the network"
    if second in NETWORK_PER_TASK | {"der_expandable"}:
        return "has to be the main strategy"
    return None


@pytest.mark.parametrize(
    "first",
    # All take minutes of processor time: a sixth of them each time, the others with -m slow.
    [name if i % 6 == 0 else pytest.param(name, marks=pytest.mark.slow) for i, name in enumerate(NAMES)],
)
def test_every_pair(first):
    """Accepted: three tasks of two steps with finite losses, and other predictions than those of either strategy alone."""
    for second in NAMES:
        if first == second:
            continue
        options = options_of(first), options_of(second)
        result, part = try_pair(*options), refusal(first, second)
        if part is None:
            assert not isinstance(result, ConfigError), result
            check_acts(result, *options, adds_nothing=SAME_AS_ONE_ALONE)
        else:
            assert isinstance(result, ConfigError), (first, second)
            check_sentence(result, first, second, part)


def with_options(name: str, **options) -> StrategyConfig:
    return dataclasses.replace(options_of(name), **options)


FROM_SCRATCH = {"from_scratch": True}
ONCE = {"when": "last_task", "batch_per_task": False}

REFUSED_WITH_OPTIONS = [
    ("joint", FROM_SCRATCH, "ewc", {}, "ewc keeps what single ones were worth"),
    ("joint", FROM_SCRATCH, "owm", {}, "owm keeps what single ones were worth"),
    ("joint", FROM_SCRATCH, "continual_backprop", {}, "from the initial weights"),
    ("joint", FROM_SCRATCH, "lwf", {}, "lwf holds on to what the network was before"),
    ("joint", FROM_SCRATCH, "featkd", {}, "featkd holds on to what the network was before"),
    ("joint", FROM_SCRATCH, "shrink_perturb", {"every": "task"}, "shrinks what earlier tasks have made"),
    ("joint", FROM_SCRATCH, "reglora", {}, "reglora merges what a task has learned into frozen weights"),
    *(
        ("joint", ONCE, other, options, f"and {other} acts between tasks")
        for other, options in {
            "ewc": {},
            "lwf": {},
            "agem": {},
            "reglora": {},
            "shrink_perturb": {"every": "task"},
            "l2": {"from_start": False},
        }.items()
    ),
    ("reglora", {}, "shrink_perturb", {"every": "task"}, "anew for every task"),
    ("reglora", {}, "grpo", {"reference": "start"}, "anew for every task"),
    ("acil", {"extractor": "frozen"}, "spectral", {}, "learns without gradients and in one pass, where spectral"),
    ("ranpac", {"extractor": "frozen"}, "lora", {}, "learns without gradients and in one pass, where lora"),
    (
        "if2net",
        {"extractor": "pixels"},
        "wasserstein",
        {},
        "learns without gradients and in one pass, where wasserstein",
    ),
    ("acil", {}, "l2", {"from_start": False}, "l2 does not act before the second"),
    ("owm", {"layers": "last"}, "shrink_perturb", {"every": "task"}, "as weight decay does"),
]
"""Pairs that are refused with some options, in either order."""

ACCEPTED_WITH_OPTIONS = [
    ("joint", FROM_SCRATCH, "l2", {}),
    ("joint", FROM_SCRATCH, "l2_init", {}),
    ("joint", FROM_SCRATCH, "gem", {}),
    ("joint", ONCE, "l2_init", {}),
    ("joint", ONCE, "redo", {}),
    ("coda_prompt", {}, "joint", FROM_SCRATCH),
    ("dualprompt", {}, "joint", FROM_SCRATCH),
    ("outliers", {}, "shrink_perturb", {"every": "task"}),
    ("acil", {}, "l2", {"from_start": False, "towards": "zero", "where": "all"}),
    ("lora", {}, "ranpac", {"extractor": "first_task"}),
]


@pytest.mark.parametrize(("first", "of_first", "second", "of_second", "part"), REFUSED_WITH_OPTIONS)
def test_pairs_that_their_options_make_meaningless(first, of_first, second, of_second, part):
    chosen = [with_options(first, **of_first), with_options(second, **of_second)]
    config = base_config("class", network_for((first, second)))
    for order in (chosen, chosen[::-1]):
        with pytest.raises(ConfigError) as caught:
            refuse(order, config)
        check_sentence(caught.value, first, second, part)


@pytest.mark.parametrize(("first", "of_first", "second", "of_second"), ACCEPTED_WITH_OPTIONS)
def test_pairs_that_their_options_do_not_contradict(first, of_first, second, of_second):
    options = with_options(first, **of_first), with_options(second, **of_second)
    where = {"setting": "class", "network": network_for((first, second))}
    both = trained(*options, **where)
    assert torch.tensor(both.losses).isfinite().all()
    for one in options:
        assert not torch.equal(both.logits, trained(one, **where).logits)


def test_every_rule_has_a_pair():
    """No row of the table could be left out."""
    met = set()
    cases = [(first, {}, second, {}) for first in NAMES for second in NAMES if first < second]
    for first, of_first, second, of_second in [*cases, *(case[:4] for case in REFUSED_WITH_OPTIONS)]:
        try:
            refuse([with_options(first, **of_first), with_options(second, **of_second)], base_config("class", "mlp"))
        except ConfigError as error:
            orders = [{"one": first, "other": second}, {"one": second, "other": first}]
            met |= {
                rule for rule in CONFLICTS if any(str(error).endswith(rule.why.format(**names)) for names in orders)
            }
    assert met == set(CONFLICTS)
    used: set[str] = {trait for rule in CONFLICTS for trait in (rule.one, rule.other, rule.unless)}
    of_streams = {"one task a class", "mixes exemplars"}  # see refuse_stream, tests/scenarios/test_blurry.py
    of_options = {
        "reads the forward pass",
        "linear head",
    }  # see tests/training/test_microbatch.py, tests/models/test_heads.py
    assert TRAITS.keys() - of_streams - of_options <= used


def test_who_makes_the_steps_is_asked_before_who_adds_to_them(small_trainer):
    """Whatever their order: the added strategy makes as many steps as it likes, and each has its reference samples."""
    trainer = small_trainer(
        "strategy=gem", "strategy.plus=[joint]", "strategy.memory_size=40", "trainer.epochs=1", "trainer.max_steps_per_task=null"
    )  # fmt: skip
    trainer.fit_task()
    trainer.begin_task()
    assert len(trainer.steps) > len(trainer._task.ids) / 8  # of both tasks' samples
    assert all(step.reference is not None for step in trainer.steps)


def test_of_several_added_strategies_every_two_are_looked_at():
    with pytest.raises(ConfigError, match="er and joint cannot be combined"):
        refuse([options_of(name) for name in ("l2", "er", "spectral", "joint")], base_config("class", "mlp"))


class Importances(Strategy):
    """A strategy of a user's own."""

    needs = Needs(weights_only=True, traits=frozenset({"remembers weights"}))


class Misspelt(Strategy):
    needs = Needs(traits=frozenset({"remembers wieghts"}))


def test_a_strategy_of_ones_own_declares_its_traits(monkeypatch):
    monkeypatch.setitem(STRATEGIES._entries, "importances", Importances)
    own = StrategyConfig(name="importances")
    refuse([options_of("lora"), own], base_config("class", "vit"))
    with pytest.raises(
        ConfigError, match="reglora and importances cannot be combined: reglora draws its trained weights anew"
    ):
        refuse([options_of("reglora"), own], base_config("class", "vit"))
    with pytest.raises(ValueError, match="Misspelt declares remembers wieghts, none of makes networks"):
        traits_of(Misspelt, own)


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["strategy=owm", "trainer.optimizer=adam"], ["trainer.optimizer=adam undoes", "owm", "Valid choices: sgd"]),
        (["strategy=owm", "trainer.optimizer=adamw"], ["trainer.optimizer=adamw undoes", "owm"]),
        (["strategy=owm", "trainer.optimizer=adagrad"], ["trainer.optimizer=adagrad undoes", "owm"]),
        (["strategy=owm", "trainer.weight_decay=0.1"], ["trainer.weight_decay=0.1 moves weights", "owm"]),
        (["strategy=er", "strategy.plus=[owm]", "trainer.optimizer=adam"], ["trainer.optimizer=adam undoes", "owm"]),
        (["strategy=acil", "trainer.zero_head=true"], ["trainer.zero_head=true", "acil does not"]),
        (
            ["strategy=l2", "strategy.plus=[acil]", "trainer.zero_head=true"],
            ["trainer.zero_head=true", "acil does not"],
        ),
        (
            ["strategy=joint", "strategy.from_scratch=true", "trainer.zero_head=true"],
            ["trainer.zero_head=true has no meaning with joint"],
        ),
        (
            [
                "strategy=lora",
                "model=small_vit",
                "model.image_size=8",
                "strategy.plus=[l2]",
                "+plus.l2.where=attention",
            ],
            ["plus.l2.where=attention names weights that strategy=lora freezes"],
        ),
        (
            [
                "strategy=er",
                "model=small_vit",
                "model.image_size=8",
                "strategy.plus=[ewc]",
                "+plus.ewc.where=attention",
            ],
            ["plus.ewc.where=attention freezes weights that strategy=er takes for trained ones"],
        ),
    ],
)
def test_options_of_the_run_that_contradict_a_strategy(overrides, parts, small_setup):
    with pytest.raises(ConfigError) as caught:
        small_setup(*overrides)
    text = str(caught.value)
    assert all(part in text for part in parts), text


def test_what_is_refused_is_refused_before_data_are_read(small_setup):
    with pytest.raises(ConfigError, match="er and joint cannot be combined"):
        small_setup(
            "strategy=er",
            "strategy.plus=[joint]",
            "scenario=cifar100",
            "model=mlp",
            "data.root=/nowhere",
            "data.download=false",
        )


def test_what_an_adapter_leaves_to_the_spectral_penalty_is_said(small_setup):
    vit = ["model=small_vit", "model.width=8", "model.depth=1", "model.heads=2", "model.image_size=8"]
    setup = small_setup("strategy=lora", "strategy.plus=[spectral]", "strategy.rank=2", *vit)
    assert any("spectral: 4 trained tensors of the network are not penalised" in note for note in setup.learner.notes())


PAIRS = [
    ("er", "ewc", ["strategy.memory_size=40"], ["+plus.ewc.lam=7"]),
    ("er", "lwf", ["strategy.memory_size=40"], []),
    ("er", "gem", ["strategy.memory_size=40"], ["+plus.gem.memory_size=40"]),
    ("er", "agem", ["strategy.memory_size=40"], ["+plus.agem.memory_size=40", "+plus.agem.reference_size=8"]),
    ("ewc", "l2", [], ["+plus.l2.from_start=false"]),
    ("gem", "ewc", ["strategy.memory_size=40"], []),
    ("joint", "gem", [], ["+plus.gem.memory_size=40"]),
    ("ewc", "spectral", [], ["+plus.spectral.lam=0.1"]),
    ("predkd", "l2", [], []),
    ("predkd", "ewc", [], []),
    ("predkd", "featkd", [], []),
]

OTHER_PAIRS = [
    ("er", "continual_backprop", ["strategy.memory_size=40"], ["+plus.continual_backprop.maturity=1"]),
    ("gem", "shrink_perturb", ["strategy.memory_size=40"], []),
    ("acil", "spectral", ["strategy.width=20"], []),
]
"""Of which one adds no term to the loss, or adds it in the first task only."""


@pytest.mark.parametrize(("first", "second", "options", "plus"), PAIRS)
def test_terms_are_those_of_the_separate_strategies(
    first, second, options, plus, small_trainer, learn_tasks, task_of, batch_of
):
    """Two learners with one strategy each, given the same weights and memories, name the same terms together."""
    both = small_trainer(f"strategy={first}", f"strategy.plus=[{second}]", *options, *plus, checkpoint="both")
    learn_tasks(both, 2)
    both.learner.begin_task(task_of(both, 2))
    task = task_of(both, 2)
    plan = both.learner.plan(task)
    batch = batch_of(
        both,
        plan.new[0],
        None if plan.replay is None else plan.replay[0],
        None if plan.reference is None else plan.reference[0],
        reference_sizes=plan.reference_sizes,
    )
    with torch.no_grad():
        for p in both.learner.model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    terms = both.learner.loss(batch)
    gradient = torch.randn_like(both.learner.strategies[0].flat_parameters())
    edited = both.learner.edit_gradients(gradient, batch)

    expected = {}
    for index, name in enumerate((first, second)):
        chosen = options if index == 0 else [o.replace(f"+plus.{second}", "strategy") for o in plus]
        alone = small_trainer(f"strategy={name}", *chosen, checkpoint=name)
        learner = alone.learner
        learner.model.load_state_dict(both.learner.model.state_dict())
        learner.strategies[0].load_state_dict(both.learner.strategies[index].state_dict())
        learner.resume_at(2)
        learner.train()
        alone_plan = learner.plan(task)
        separate = learner.loss(batch)
        expected |= separate if index == 0 else {k: v for k, v in separate.items() if k == name}
        if name in ("gem", "agem"):
            torch.testing.assert_close(edited, learner.edit_gradients(gradient, batch))
        for ours, theirs in ((plan.replay, alone_plan.replay), (plan.reference, alone_plan.reference)):
            assert theirs is None or all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert terms.keys() == expected.keys()
    for name, term in terms.items():
        torch.testing.assert_close(term, expected[name])


@pytest.mark.parametrize(("first", "second", "options", "plus"), [*PAIRS, *OTHER_PAIRS])
def test_pairs_run(first, second, options, plus, small_trainer):
    trainer = small_trainer(f"strategy={first}", f"strategy.plus=[{second}]", *options, *plus)
    trainer.fit()
    absorbs = getattr(trainer.config.strategy, "extractor", None) == "first_task"
    absorbed = -(-len(trainer.scenario.train.ids(0)) // 8) if absorbs else 0
    assert trainer.iteration == 20 + absorbed


def test_options_of_an_added_strategy(small_setup):
    setup = small_setup("strategy=er", "strategy.plus=[ewc]", "+plus.ewc.lam=5")
    er, ewc = setup.learner.strategies
    assert (er.name, ewc.name) == ("er", "ewc")
    assert ewc.lam == 5
    assert ewc.options.fisher == "empirical"  # the rest is from its YAML file
    with pytest.raises(ConfigError, match=r"plus\.ewc: Key 'lamda' not in 'EWCConfig'"):
        small_setup("strategy=er", "strategy.plus=[ewc]", "+plus.ewc.lamda=5")


@pytest.mark.parametrize("setting", ["class", "task"])
def test_flat_gradient_is_autograds_and_leaves_no_trace(setting, small_trainer_with_batch_norm, learn_tasks):
    """In training mode: batch statistics normalise, running statistics stay; the result is cut off from the graph."""
    scenario = {"class": "split_digits", "task": "split_digits_task"}[setting]
    trainer = small_trainer_with_batch_norm(
        "strategy=gem", f"scenario={scenario}", "model=slim_resnet18", "model.width=2"
    )
    learn_tasks(trainer, 1)
    trainer.task = 1
    trainer.train_mode()
    strategy, model = trainer.learner.strategies[0], trainer.learner.model
    samples = trainer.inputs.plain(trainer.scenario.train, trainer.scenario.train.ids(0)[:12])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradient = strategy.flat_gradient(samples)
    assert not gradient.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    loss = strategy.cross_entropy(model(samples.x), samples).mean()
    expected = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, trainer.parameters)])
    torch.testing.assert_close(gradient, expected)
    assert not torch.equal(model.backbone.bn1.running_mean, before["backbone.bn1.running_mean"])


@pytest.mark.parametrize("name", ["gem", "agem", "ewc", "l2", "lwf"])
def test_batch_norm_statistics_are_a_function_of_the_training_batches(name, small_trainer_with_batch_norm, learn_tasks):
    """Whatever a strategy looks at beside its batch: after the first step of task 2 they equal finetuning's."""
    statistics = {}
    for strategy in ("finetune", name):
        memory = ["strategy.memory_size=40"] if strategy in ("gem", "agem") else []
        weights = ["strategy.from_start=false"] if strategy == "l2" else []
        trainer = small_trainer_with_batch_norm(f"strategy={strategy}", *memory, *weights, checkpoint=strategy)
        learn_tasks(trainer, 1)
        trainer.config.trainer.max_steps_per_task = 1
        trainer.task = 1
        trainer.fit_task()
        state = trainer.learner.model.state_dict()
        statistics[strategy] = {key: value for key, value in state.items() if "running" in key or "tracked" in key}
    assert len(statistics[name]) == 60
    for key, value in statistics["finetune"].items():
        assert torch.equal(statistics[name][key], value), key
