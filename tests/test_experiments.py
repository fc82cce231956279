"""Every committed experiment: it composes, says what it reproduces, and trains where its data are at hand."""

import pytest
import torch

from clbench.conf_files import conf_dir, group_choices
from clbench.errors import DataError
from clbench.models.hypernetworks import ChunkedHypernetwork, Pieces, RecurrentHypernetwork
from clbench.options import check_fields, to_dataclass
from clbench.set_up import set_up
from clbench.testing.small_runs import composed
from clbench.training.trainer import Trainer

NAMES = group_choices("experiment")


@pytest.mark.parametrize("name", NAMES)
def test_composes_to_valid_options(name):
    config = to_dataclass(composed(f"experiment={name}"))
    check_fields(config, "")
    assert name.endswith(f"_{config.strategy.name}")
    assert name.startswith((config.scenario.name, f"{config.scenario.name}_rehearsal_free"))


@pytest.mark.parametrize("name", NAMES)
def test_says_what_it_reproduces_and_from_where(name):
    comments = [
        line for line in (conf_dir() / "experiment" / f"{name}.yaml").read_text().splitlines() if line[:1] == "#"
    ]
    assert comments[0] == "# @package _global_"
    text = " ".join(comments[1:])
    assert "arXiv:" in text
    assert f"experiment={name}" in text  # the command


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("split_mnist_er", {"trainer.lr": 0.01, "trainer.batch_size": 256, "trainer.epochs": 10, "trainer.momentum": 0.9,
                            "strategy.memory_size": 2000, "strategy.new_weight": 0.3, "scenario.logit_scope": "all"}),
        ("split_mnist_gem", {"trainer.lr": 0.01, "trainer.batch_size": 256, "strategy.memory_size": 2000,
                             "strategy.gamma": 0.5, "scenario.logit_scope": "all"}),
        ("split_cifar10_er", {"trainer.lr": 0.1, "trainer.batch_size": 256, "trainer.epochs": 10,
                              "strategy.memory_size": 1000, "strategy.new_weight": 0.7, "model.name": "slim_resnet18"}),
        ("split_cifar10_gem", {"trainer.lr": 0.001, "strategy.memory_size": 1000, "strategy.gamma": 0.5,
                               "model.name": "slim_resnet18"}),
        ("split_mini_imagenet_er", {"trainer.lr": 0.1, "trainer.batch_size": 128, "trainer.epochs": 10,
                                    "strategy.memory_size": 10000, "strategy.new_weight": 0.5}),
        ("mini_domainnet_er", {"trainer.lr": 0.1, "trainer.batch_size": 128, "trainer.max_steps_per_task": 300,
                               "trainer.epochs": None, "strategy.memory_size": 1000, "strategy.new_weight": 0.3}),
        ("mini_domainnet_ewc", {"trainer.lr": 0.01, "strategy.lam": 2.0, "strategy.mode": "average"}),
        ("mini_domainnet_lwf", {"trainer.lr": 0.01, "strategy.lam": 1.0, "strategy.temperature": 2.0}),
        ("rotated_mnist_joint", {"trainer.lr": 0.1, "trainer.momentum": 0.0, "trainer.max_steps_per_task": 500,
                                 "trainer.batch_size": 128, "strategy.batch_per_task": True, "evaluator.subset": 2000}),
        ("rotated_mnist_er", {"trainer.momentum": 0.9, "trainer.max_steps_per_task": 2000, "strategy.memory_size": 3000}),
        ("split_mnist_ten_tasks_owm", {"trainer.lr": 0.2, "trainer.momentum": 0.9, "trainer.batch_size": 40, "trainer.epochs": 20,
                                       "model.hidden": [800], "strategy.alpha": 0.9, "strategy.alpha_decay": 0.001,
                                       "strategy.head_alpha": 0.6, "strategy.head_alpha_decay": 1.0, "scenario.increment": 1}),
        ("cifar100_ranpac", {"strategy.projection": 10000, "strategy.lam": None, "scenario.class_order": 1993,
                             "model.name": "vit_base_patch16_224.augreg_in21k", "model.pretrained": True}),
        ("permuted_mnist_owm", {"trainer.lr": 2.0, "trainer.momentum": 0.0, "trainer.batch_size": 100, "trainer.epochs": 30,
                                "trainer.max_steps_per_task": None, "model.hidden": [800, 800], "strategy.alpha": 1.0,
                                "strategy.alpha_decay": 1.0, "strategy.head_alpha": 1.0, "strategy.head_alpha_decay": 1.0}),
    ],
)  # fmt: skip
def test_published_settings(name, expected):
    """The values of the papers' configuration files survive whatever the scenario's own file sets."""
    config = composed(f"experiment={name}")
    for key, value in expected.items():
        group, field = key.split(".")
        assert config[group][field] == value, key
    assert config.trainer.weight_decay == 0
    assert config.trainer.optimizer == "sgd"
    assert config.trainer.scheduler == "constant"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # chrhenning/hypercl, mnist/train_args_default.py
        ("split_mnist_task_hypernetwork", {"model.hidden": [400, 400], "strategy.hidden": [10, 10], "strategy.chunk_size": 42000,
                                           "strategy.embedding_size": 96, "strategy.beta": 0.01, "trainer.lr": 0.001,
                                           "trainer.batch_size": 128, "trainer.max_steps_per_task": 2000}),
        ("permuted_mnist_large_hypernetwork", {"model.hidden": [1000, 1000], "strategy.hidden": [25, 25], "strategy.beta": 0.1,
                                               "strategy.activation": "elu", "strategy.embedding_size": 24,
                                               "strategy.chunk_embedding_size": 8, "strategy.chunk_size": 78000,
                                               "trainer.lr": 0.0001, "trainer.max_steps_per_task": 5000}),
        # chrhenning/posterior_replay_cl, prob_mnist/README and prob_cifar/README
        ("split_mnist_hypernetwork", {"model.hidden": [100, 100], "strategy.hidden": [10, 10, 10, 10],
                                      "strategy.chunk_size": 8000, "strategy.chunk_embedding_std": 0.1,
                                      "strategy.beta": 10, "trainer.lr": 0.0005, "trainer.batch_size": 32}),
        ("permuted_mnist_hypernetwork", {"model.hidden": [100, 100], "strategy.hidden": [100, 100], "strategy.chunk_size": 750,
                                         "strategy.chunk_embedding_std": 0.1, "strategy.beta": 250, "trainer.batch_size": 128,
                                         "trainer.clip_grad_norm": 1.0, "trainer.lr": 0.0005}),
        ("cifar100_task_hypernetwork", {"model.name": "resnet32", "strategy.hidden": [], "strategy.chunk_size": 7000,
                                        "strategy.beta": 10, "trainer.epochs": 200, "trainer.batch_size": 32}),
    ],
)  # fmt: skip
def test_published_settings_of_hypernetworks(name, expected):
    config = composed(f"experiment={name}")
    for key, value in expected.items():
        group, field = key.split(".")
        assert config[group][field] == value, key
    assert config.trainer.optimizer == "adam"
    assert config.strategy.lookahead


def test_two_kinds_of_hypernetworks_at_the_same_budget():
    """The recurrent and the chunked experiment: target network, steps, and parameters within a hundredth."""
    sizes, budgets = {}, {}
    for kind, name in {"chunked": "small", "recurrent": "recurrent"}.items():
        config = composed(f"experiment=split_mnist_task_{name}_hypernetwork")
        strategy = config.strategy
        assert strategy.kind == kind
        pieces = Pieces(89610, strategy.chunk_size, strategy.embedding_size, strategy.chunk_embedding_size)
        own = (list(strategy.hidden), strategy.activation) if kind == "chunked" else (strategy.state_size,)
        made = {"chunked": ChunkedHypernetwork, "recurrent": RecurrentHypernetwork}[kind](pieces, *own)
        sizes[kind] = sum(p.numel() for p in made.parameters())
        budgets[kind] = (config.model, config.trainer, config.scenario, strategy.beta)
    assert sizes == {"chunked": 89364, "recurrent": 89064}
    assert budgets["chunked"] == budgets["recurrent"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("predkd", {"strategy.loss": "bce_kd", "strategy.scale": 5.0}),
        ("predkd_l2", {"strategy.plus": ["predkd"], "strategy.lam": 0.05, "strategy.from_start": True}),
        ("predkd_ewc", {"strategy.plus": ["predkd"], "strategy.lam": 1280.0, "strategy.mode": "online"}),
        ("predkd_featkd", {"strategy.plus": ["predkd"], "strategy.lam": 5.0, "strategy.from_start": True}),
        ("featkd", {"strategy.plus": [], "strategy.lam": 5.0}),
        ("ewc", {"strategy.plus": [], "strategy.lam": 1280.0, "strategy.where": "backbone"}),
    ],
)
def test_published_settings_of_the_rehearsal_free_suite(name, expected):
    """One network and schedule for all of them, with BatchNorm as the authors' code has it."""
    config = composed(f"experiment=cifar100_rehearsal_free_{name}")
    for key, value in expected.items():
        group, field = key.split(".")
        assert config[group][field] == value, key
    trainer = config.trainer
    assert (trainer.optimizer, trainer.lr, trainer.weight_decay, trainer.batch_size) == ("adam", 0.001, 0.0002, 128)
    assert (trainer.scheduler, trainer.milestones, trainer.epochs) == ("step", [0.4, 0.6, 0.8], 250)
    assert trainer.batch_norm == "frozen"
    assert (config.scenario.class_order, config.scenario.augment.crop_padding) == ("shuffled", 4)


def test_an_experiment_chooses_its_model_over_its_scenarios():
    config = composed("experiment=cifar100_rehearsal_free_ewc")
    assert (config.model.kind, config.model.name) == ("timm", "resnet18")
    assert (config.trainer.epochs, config.trainer.max_steps_per_task) == (250, None)


def test_a_strategy_may_change_its_scenarios_schedule_but_no_experiments():
    """conf/training/<strategy>.yaml stands between the scenario's file and the experiment's."""
    for scenario in ("split_digits", "cifar100"):
        config = composed(f"scenario={scenario}", "strategy=hypernetwork")
        assert (config.trainer.optimizer, config.trainer.lr) == ("adam", 0.001)
        assert composed(f"scenario={scenario}", "strategy=er").trainer.optimizer == "sgd"
    assert composed("experiment=split_mnist_hypernetwork").trainer.lr == 0.0005
    assert composed("strategy=hypernetwork", "trainer.optimizer=sgd").trainer.optimizer == "sgd"
    names = {file.stem for file in (conf_dir() / "training").glob("*.yaml")}
    assert names <= set(group_choices("strategy"))


def test_the_command_line_has_the_last_word():
    config = composed("experiment=split_mnist_er", "trainer.lr=0.5", "strategy.memory_size=77")
    assert (config.trainer.lr, config.strategy.memory_size) == (0.5, 77)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_trains_two_steps_on_real_data(name, real_data, tmp_path):
    overrides = [
        f"experiment={name}",
        f"data.root={real_data}",
        "data.download=false",
        "evaluator.subset=10",
        "device=cpu",
    ]
    if "cifar10_" in name and not (real_data / "cifar-10-batches-py").is_dir():
        overrides.append("data.folder=cifar10_small")
    config = composed(*overrides)
    config.model.checkpoint = None  # files that a user passes, and downloads: two steps do without
    if config.model.get("pretrained"):
        config.model.pretrained = False
        config.trainer.batch_size = 8  # transformers of this size take a second per image on a processor
    try:
        setup = set_up(config)
    except DataError as error:
        pytest.skip(str(error))
    trainer = Trainer(setup.config, setup.scenario, setup.learner, setup.inputs, setup.evaluator, tmp_path / "state.pt")
    trainer.begin_task()
    # What is learned without gradients is in buffers.
    learner = trainer.learner
    learned = trainer.parameters if learner.learns_by_gradient else list(learner.strategies.buffers())
    before = torch.cat([t.detach().flatten() for t in learned])
    for trainer.step in range(2):
        trainer._train_step(0, trainer.steps[trainer.step])
    after = torch.cat([t.detach().flatten() for t in learned])
    assert after.isfinite().all()
    assert (after != before).float().mean() > 0.099  # of CODA-Prompt, a task of ten trains a tenth
    assert trainer.training.loss.notna().all()
