"""Slips of the pen, drawn at random: no traceback, and no folder of what is refused."""

import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator

import pytest
from small_commands import SMALL

VALID = [
    ["strategy=er", "strategy.memory_size=20", "seed=1"],
    ["strategy=ewc", "strategy.lam=2.5", "strategy.fisher=empirical", "trainer.lr=0.1"],
    ["strategy=finetune", "strategy.plus=[l2]", "plus.l2.lam=0.5", "scenario.increment=5"],
    ["scenario=split_digits_task", "strategy=lwf", "trainer.optimizer=adam", "trainer.clip_grad_norm=1.0"],
    ["evaluator=adaptive", "strategy=gem", "strategy.memory_size=20", "trainer.milestones=[0.5,0.75]"],
    ["-m", "strategy=er,gem", "strategy.memory_size=20", "seed=0,1"],
    ["-m", "strategy=finetune", "trainer.lr=0.01,0.1", "trainer.momentum=0.5"],
    ["--cfg", "job", "strategy=l2", "seed=3"],
    ["describe", "ewc"],
    ["list", "model"],
    ["runs", "--columns", "seed"],
]
NUMBER = int(os.environ.get("CLBENCH_FUZZ", "60"))
SEED = int(os.environ.get("CLBENCH_FUZZ_SEED", "0"))


def mutated(words: list[str], draw: random.Random) -> list[str]:
    """One slip: a letter, a type, a bound, a missing value, a doubled key, a sign, a comma."""
    words = list(words)
    place = draw.randrange(len(words))
    key, equals, value = words[place].partition("=")
    kind = draw.choice(
        ["letter", "lost", "swapped", "type", "bound", "missing", "doubled", "sign", "comma", "case", "bracket"]
    )
    position = draw.randrange(len(words[place]))
    match kind:
        case "letter":
            letter = draw.choice("abcxyz019._-=,[({'\"$ ")
            words[place] = words[place][:position] + letter + words[place][position + 1 :]
        case "lost":
            words[place] = words[place][:position] + words[place][position + 1 :]
        case "swapped":
            text = list(words[place])
            other = min(position + 1, len(text) - 1)
            text[position], text[other] = text[other], text[position]
            words[place] = "".join(text)
        case "type" if equals:
            words[place] = (
                f"{key}={draw.choice(['abc', '1.5', 'true', 'null', '[1,2]', '{a:1}', '1e400', 'nan', '-3'])}"
            )
        case "bound" if equals:
            words[place] = f"{key}={draw.choice(['-1', '0', '1e30', '99999999999999999999', '-0.5'])}"
        case "missing":
            words[place] = f"{key}=" if equals else words[place][:1]
        case "doubled":
            words.insert(place, words[place] if draw.random() < 0.5 else f"{key}=7")
        case "sign":
            words[place] = draw.choice("+~-@") + words[place]
        case "comma" if equals:
            words[place] = f"{key}={value},{draw.choice(['', '5', 'x'])}"
        case "case":
            words[place] = words[place].upper()
        case _:
            words[place] += draw.choice(")]}")
    return [word for word in words if word]


def commands(seed: int, n: int) -> Iterator[list[str]]:
    draw = random.Random(seed)
    small = [option for option in SMALL if not option.startswith(("strategy=", "evaluator.every"))]
    for _ in range(n):
        words = mutated(draw.choice(VALID), draw)
        yield words + (small if not {"describe", "list", "runs"} & set(words) and "=" in "".join(words) else [])


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_random_slips(clb, tmp_path):
    """``CLBENCH_FUZZ=500`` draws so many, ``CLBENCH_FUZZ_SEED=1`` others; every fault of all of them is shown."""
    counts, faults = Counter(), []
    for words in commands(SEED, NUMBER):
        try:
            status, _, errors = clb(*words)
        except SystemExit as ended:  # argparse's help
            status, errors = ended.code, ""
        except Exception as error:  # what main() does not turn into a sentence ends in a traceback
            status, errors = "traceback", f"Traceback: {error!r}"
        counts[status] += 1
        said = [line for line in errors.splitlines() if line.startswith("clbench: ")]
        if "Traceback" in errors or status not in (0, 1, 2, 3):
            faults.append((words, errors))
        if status == 2 and (list(tmp_path.iterdir()) or not said):
            faults.append((words, status, said, list(tmp_path.iterdir())))
        for folder in tmp_path.iterdir():
            shutil.rmtree(folder)
    print(dict(counts))
    assert not faults, "\n".join(map(str, faults))
