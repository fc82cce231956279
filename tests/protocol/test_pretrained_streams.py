"""The scenarios for pretrained networks, over small made-up copies of their data: tasks, halves, and a run."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clbench.config import typed
from clbench.data.images import ImageSet, SourceData
from clbench.protocol.streams import plan_streams, refuse_leak, scenario_of
from clbench.registry import SOURCES
from clbench.scenarios.class_incremental import increments

CLASSES = [f"n{c:02d}" for c in range(8)]
SIZE = 16

SIZES = {
    # name: (classes, new classes per task, how many tasks other numbers of them make)
    "cifar100_pretrained": (100, 10, {20: 5, 10: 10, 5: 20}),
    "imagenet_r": (200, 20, {40: 5, 20: 10, 10: 20}),
    "imagenet_a": (200, 20, {40: 5, 20: 10, 10: 20}),
    "cub200": (200, 20, {40: 5, 20: 10, 10: 20}),
    "domainnet": (345, 69, {69: 5, 23: 15, 15: 23}),
    "domainnet_200": (200, 20, {40: 5, 20: 10, 10: 20}),
}


def write(folder: Path, seed: int) -> list[str]:
    """Five random images, taller than wide; their names."""
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (5, SIZE + 4, SIZE, 3), np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{i}.png")
    return [f"{i}.png" for i in range(5)]


def write_lists(folder: Path, **lists: list[str]) -> None:
    for name, lines in lists.items():
        (folder / f"{name}.txt").write_text("\n".join(lines))


def make_imagenet_r(root: Path) -> None:
    paths = [f"{name}/{file}" for c, name in enumerate(CLASSES) for file in write(root / "imagenet-r" / name, c)]
    is_test = lambda path: path.endswith("3.png")  # noqa: E731
    write_lists(
        root / "imagenet-r",
        train=[path for path in paths if not is_test(path)],
        test=[path for path in paths if is_test(path)],
    )


def make_imagenet_a(root: Path) -> None:
    for c, name in enumerate(CLASSES):
        write(root / "imagenet-a" / name, c)


def make_cub200(root: Path) -> None:
    folder = root / "CUB_200_2011"
    paths = [f"{name}/{file}" for c, name in enumerate(CLASSES) for file in write(folder / "images" / name, c)]
    write_lists(
        folder,
        images=[f"{i} {path}" for i, path in enumerate(paths)],
        train_test_split=[f"{i} {int(i % 5 != 3)}" for i in range(len(paths))],
    )


def make_domainnet(root: Path) -> dict[str, list[str]]:
    """The official layout; and by domain and split what its lists say."""
    lists: dict[str, list[str]] = {}
    for d, domain in enumerate(["clipart", "real"]):
        for c, name in enumerate(CLASSES):
            rows = [f"{domain}/{name}/{file} {c}" for file in write(root / "domainnet" / domain / name, 10 * d + c)]
            lists.setdefault(f"{domain}_train", []).extend(rows[:4])
            lists.setdefault(f"{domain}_test", []).extend(rows[4:])
    write_lists(root / "domainnet", **lists)
    return lists


def make_domainnet_200(root: Path) -> None:
    lists = make_domainnet(root)
    for split in ("train", "test"):
        write_lists(root / "domainnet", **{split: lists[f"clipart_{split}"] + lists[f"real_{split}"]})


MAKE = {
    "imagenet_r": make_imagenet_r,
    "imagenet_a": make_imagenet_a,
    "cub200": make_cub200,
    "domainnet": make_domainnet,
    "domainnet_200": make_domainnet_200,
}


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """A function: scenario → overrides for it over a small copy of its data, eight classes in four tasks."""

    def cifar100(_config) -> SourceData:
        rng = np.random.default_rng(0)
        splits = [
            ImageSet(rng.integers(0, 256, (8 * n, 3, 32, 32), np.uint8), np.repeat(np.arange(8), n)) for n in (4, 1)
        ]
        return SourceData(*splits, CLASSES, (0.5,) * 3, (0.25,) * 3)

    def make(name: str) -> list[str]:
        overrides = [f"scenario={name}", "scenario.increment=2", f"data.root={tmp_path}"]
        if name == "cifar100_pretrained":
            SOURCES.names()  # import the real ones first
            monkeypatch.setitem(SOURCES._entries, "cifar100", cifar100)
            return [*overrides, "scenario.frozen=null"]
        MAKE[name](tmp_path)
        return [*overrides, f"scenario.image_size={SIZE}"]

    return make


@pytest.mark.parametrize("name", SIZES)
def test_streams_and_halves(name, small, compose, options_of):
    """Published sizes; and over eight classes, pooled over domains: two halves of two tasks that have nothing in common."""
    config = typed(compose([f"scenario={name}"]))
    n_classes, increment, tasks = SIZES[name]
    assert config.scenario.increment == increment
    assert config.model.name == "vit_base_patch16_224.augreg_in21k_ft_in1k"
    assert config.model.pretrained
    for increment, n_tasks in tasks.items():
        varied = typed(compose([f"scenario={name}", f"scenario.increment={increment}"])).scenario
        assert len(increments(varied, list(range(n_classes)))) == n_tasks

    overrides = small(name)
    domains = 2 if name.startswith("domainnet") else 1
    whole = scenario_of(compose(overrides), 0)
    assert (whole.n_tasks, whole.class_names) == (4, CLASSES)
    assert (len(whole.train), len(whole.test)) == (8 * 4 * domains, 8 * domains)
    side = 32 if name == "cifar100_pretrained" else SIZE
    assert whole.input_shape == (3, side, side)
    assert (whole.mean, whole.std) == ((0.0,) * 3, (1.0,) * 3)

    streams = plan_streams(overrides, options_of(kinds=["two_phase"], halves="index", validation=0.25), compose)
    tuning, evaluation = (
        scenario_of(compose([*overrides, *part]), 0) for part in (streams.tuning["two_phase"], streams.evaluation)
    )
    assert (tuning.class_names, evaluation.class_names) == (CLASSES[:4], CLASSES[4:])
    assert tuning.n_tasks == evaluation.n_tasks == 2
    assert len(tuning.validation) == 4 * domains
    assert refuse_leak(tuning, evaluation).images == 0


def test_a_network_is_trained_on_one(small, small_trainer):
    """Through augmentation, resizing on the device and a transformer."""
    trainer = small_trainer(
        *small("imagenet_r"), "strategy=finetune", "trainer.max_steps_per_task=2", "model=small_vit", "model.image_size=24",
        "model.patch_size=8", "model.width=8", "model.depth=1", "model.heads=2",
    )  # fmt: skip
    before = {name: value.clone() for name, value in trainer.learner.named_parameters()}
    trainer.fit()
    moved = {name for name, value in trainer.learner.named_parameters() if not value.equal(before[name])}
    assert any("blocks.0" in name for name in moved)
    assert any("head" in name for name in moved)
