"""DER++: dark experience replay with labels (Buzzega et al. 2020, arXiv:2004.07211).

Every step trains on new samples and on two draws from a reservoir, x' with the logits z' that it had when it was stored, and x''
with its label y'':

    L = CE(z(x), y) + α · mean (z(x') − z')² + β · CE(z(x''), y'')

The draws are independent of each other. All else is as in DER, see ``python -m clbench describe der``: what the logits are that
are stored, which outputs are compared, and how other code differs.

Stores M sample ids and M × n_classes logits.
"""

from dataclasses import dataclass

from torch import Tensor

from clbench.learning.base import Batch, Needs, Outputs
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Samples
from clbench.strategies.der import DER, DERConfig


@dataclass
class DERPPConfig(DERConfig):
    """Options of ``strategy=derpp``."""

    beta: float = option(help="weight β of the loss on labels of the second draw", at_least=0)


@STRATEGIES.register("derpp")
class DERPP(DER):
    """Replay of stored logits, and of labels."""

    config = DERPPConfig
    needs = Needs(boundaries=False, memory=True)
    options: DERPPConfig
    beta: Tensor

    n_draws = 2

    def data_loss(self, batch: Batch, outputs: Outputs) -> dict[str, Tensor]:
        terms = super().data_loss(batch, outputs)
        before = batch.n_new + len(batch.columns[self.memory.read])
        second = Samples(*(tensor[before:] for tensor in batch.samples))
        if len(second.y):
            terms["labels"] = self.beta * self.cross_entropy(outputs.logits[before:], second).mean()
        return terms
