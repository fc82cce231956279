"""What is asked of the network about a sample, how far an answer is from being right, and which answers are possible at all.

That is the sample's class (:class:`ClassLabels`), or a language model is to say it (:class:`SpokenLabels`). What differs between
scenarios is which classes are possible (:meth:`ClassLabels.visible`):

* class-incremental: all classes seen so far, which is a growing head; in training only those of the sample's own task
  (``logit_scope=current``); or all classes of the stream from the start (``logit_scope=all``);
* task-incremental: those of the sample's own task, which is one head per task;
* domain-incremental: all of them.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clbench.data.text import token_numbers
from clbench.errors import ConfigError
from clbench.scenarios.scenario import Samples, Scenario


class ClassLabels(nn.Module):
    """A sample's class, out of those that it may be of.

    Args:
        task_classes: labels of every task.
        setting: ``class``, ``task`` or ``domain``.
        logit_scope: class-incremental only: ``all``, ``seen`` or ``current``.
        first_seen: for every label the task with which its first sample arrives; None: the one task that it belongs to. Where
            methods are not told of tasks, a number beyond the last one, until :meth:`see` has met the label.
    """

    class_task: Tensor
    first_seen: Tensor
    current_task: Tensor

    def __init__(
        self,
        task_classes: list[list[int]],
        setting: str,
        logit_scope: str = "seen",
        first_seen: list[int] | None = None,
    ) -> None:
        super().__init__()
        self.setting, self.logit_scope = setting, logit_scope
        self.n_classes = 1 + max(label for labels in task_classes for label in labels)
        class_task = [0] * self.n_classes
        if setting != "domain":
            for task, labels in enumerate(task_classes):
                for label in labels:
                    class_task[label] = task
        arrives = class_task if first_seen is None or setting == "domain" else first_seen
        self.register_buffer("class_task", torch.tensor(class_task))
        self.register_buffer("first_seen", torch.tensor(arrives))
        self._begins_with_a_class = 0 in arrives  # so that there always is one that has been seen
        self.register_buffer("current_task", torch.zeros((), dtype=torch.int64))

    # ---- which answers are possible -------------------------------------------------------------------------------------

    def see(self, labels: Tensor) -> None:
        """Let the classes of ``labels`` (B,) be seen from now on, as samples of them have arrived."""
        self.first_seen[labels] = torch.minimum(self.first_seen[labels], self.current_task)

    def restrict(self, logits: Tensor, task: Tensor | None, predicting: bool = False) -> Tensor:
        """The logits (B, n_classes) with −inf where a sample may not look.

        Args:
            logits: (B, n_classes) of the network.
            task: int64 (B,), each sample's task; may be None where the scenario hides it at prediction.
            predicting: at prediction the scope ``current`` becomes ``seen``, since the task is hidden.
        """
        visible = self.visible(task, predicting)
        return logits if visible is None else logits.masked_fill(~visible, -math.inf)

    def visible(self, task: Tensor | None, predicting: bool = False) -> Tensor | None:
        """Boolean (B, n_classes) or (n_classes,): the outputs a sample may see; None for all."""
        if self.sees_all:
            return None
        if self.setting == "task" or (self.logit_scope == "current" and not predicting):
            assert task is not None, "the scenario gives each sample's task"
            return self.class_task == task.unsqueeze(-1)
        seen = self.first_seen <= self.current_task
        if self._begins_with_a_class:
            return seen
        return seen | ~seen.any()  # before the first sample of a stream without boundaries every class is as likely

    @property
    def sees_all(self) -> bool:
        """Whether every sample sees every output from the start, so that nothing grows."""
        return self.setting == "domain" or (self.setting == "class" and self.logit_scope == "all")

    def learned_before(self) -> Tensor:
        """Boolean (n_classes,): the outputs of tasks before the current one (all of them in domain-incremental)."""
        if self.setting == "domain":
            return torch.ones_like(self.class_task, dtype=torch.bool)
        return self.first_seen < self.current_task

    # ---- how right an answer is -----------------------------------------------------------------------------------------

    def losses(self, logits: Tensor, samples: Samples) -> Tensor:
        """Cross-entropy (B,) per sample over the logits the sample may see."""
        return F.cross_entropy(self.restrict(logits, samples.task), samples.y, reduction="none")

    def judge(self, logits: Tensor, labels: Tensor) -> Tensor:
        """float32 (B, 2): whether each sample is classified correctly, and its cross-entropy.

        Args:
            logits: (B, n_classes) of a prediction, −inf where a class is ruled out.
            labels: int64 (B,).
        """
        correct = logits.max(1).indices == labels  # half the time of argmax
        # A quarter of the time of F.cross_entropy, which makes all log-probabilities.
        loss = logits.logsumexp(1) - logits.gather(1, labels[:, None])[:, 0]
        return torch.stack([correct.float(), loss], dim=1)


class SpokenLabels(ClassLabels):
    """A sample's class, which a language model says in one token of its vocabulary; logits are log-probabilities of the answers.

    They come from :class:`clbench.models.heads.VerbaliserHead`, with a last column where they are to be judged. Two scores of one
    prediction tell forgetting apart (Chen et al. 2025, SEFE, arXiv:2505.02486): that the right answer is the likeliest of those
    that may be given is knowledge; that it is the likeliest of all tokens is what greedy generation says. What lies between is
    superficial: the form of an answer has been forgotten.
    """

    def restrict(self, logits: Tensor, task: Tensor | None, predicting: bool = False) -> Tensor:
        """The same over the answers' columns; a column beyond them stays."""
        of_answers, beyond = logits[..., : self.n_classes], logits[..., self.n_classes :]
        restricted = super().restrict(of_answers, task, predicting)
        return torch.cat([restricted, beyond], -1) if beyond.shape[-1] else restricted

    def losses(self, logits: Tensor, samples: Samples) -> Tensor:
        """The language model's loss (B,): −log p of the answer's token among all of the vocabulary, seen or not."""
        return -logits.gather(1, samples.y[:, None])[:, 0]

    def judge(self, logits: Tensor, labels: Tensor) -> Tensor:
        """float32 (B, 4): correct, loss, exact, valid; (B, 2) without the likeliest token's column.

        ``correct``: the answer is the likeliest of those that are not ruled out; ``loss``: −log p of it; ``exact``: it is the
        likeliest of all tokens; ``valid``: some answer of the sample's task is. A tie counts in the answer's favour.
        """
        options, likeliest = logits[:, : self.n_classes], logits[:, self.n_classes :]
        correct = options.max(1).indices == labels
        of_answer = options.gather(1, labels[:, None])
        if not likeliest.shape[1]:
            return torch.stack([correct.float(), -of_answer[:, 0]], dim=1)
        of_task = self.class_task == self.class_task[labels][:, None]
        said = options.masked_fill(~of_task, -math.inf).amax(1, keepdim=True)
        scores = [correct.float()[:, None], -of_answer, of_answer >= likeliest, said >= likeliest]
        return torch.cat([score.float() for score in scores], dim=1)


def answer_tokens(scenario: Scenario, tokenizer: str | None) -> list[int]:
    """The one token, from 0, of every class's answer, which a language model is to say behind a text.

    Args:
        scenario: the stream.
        tokenizer: ``data.tokenizer``.

    Raises:
        ConfigError: the stream has no answers, one of them is not one token, two that are possible at once are the same, or a
            text does not leave its row's last place free, so that the question at its end may have been cut off.
    """
    if scenario.answers is None:
        raise ConfigError(
            f"model.head=verbaliser says answers, and {scenario.name} has classes without any: choose model.head=linear, or a "
            "scenario whose source puts its classes into words"
        )
    found = token_numbers(scenario.answers, tokenizer, special=False)
    for answer, numbers in zip(scenario.answers, found, strict=True):
        if len(numbers) != 1:
            raise ConfigError(
                f"model.head=verbaliser says one token, and the answer {answer!r} of {scenario.name} is {len(numbers)} tokens of "
                f"data.tokenizer={tokenizer}: choose model.head=linear, or answers of one token"
            )
    together = scenario.task_classes if scenario.setting == "task" else [list(range(scenario.n_classes))]
    for labels in together:
        first: dict[int, int] = {}
        for label in labels:
            other = first.setdefault(found[label][0], label)
            if other != label:
                raise ConfigError(
                    f"the classes {scenario.class_names[other]!r} and {scenario.class_names[label]!r} of {scenario.name} have "
                    f"the same answer {scenario.answers[label]!r}, which tells nobody which is meant: choose model.head=linear"
                )
    splits = [scenario.train] if scenario.test_locked else [scenario.train, scenario.test]
    stores = {id(split.store): split.store for split in splits}
    full = sum(int((store.samples[:, -1] > 0).sum()) for store in stores.values())
    if full:
        raise ConfigError(
            f"{full} texts fill all of data.length={scenario.input_shape[0]} tokens, and one that is cut off has lost the "
            "question at its end: set data.length higher"
        )
    return [numbers[0] for numbers in found]
