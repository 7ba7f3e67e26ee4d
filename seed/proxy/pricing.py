"""What scores cost in layer-tokens: one layer applied to one token.

A unit that does not depend on the machine, so that strategies can be compared at equal cost. Everything else that a score
takes is counted in multiply-adds and divided by those of one layer on one token.
"""

from dataclasses import dataclass

from seed.models.anatomy import Anatomy
from seed.proxy.closed_form import RIDGES
from seed.proxy.subset_walker import TrieWork

BACKWARD = 2.0  # a gradient takes two more passes


@dataclass(frozen=True, kw_only=True)
class Prices:
    """Prices in layer-tokens of a study's parts of work."""

    num_layers: int
    calibration_tokens: int
    validation_tokens: int
    head: float  # the head on one token
    fit: float  # a layer's sums and factors for closed form
    solve: float  # a correction, solved for and applied

    def price(self, work: TrieWork, *, validation_tokens: int | None = None) -> float:
        """Price of walking a trie, on so much validation text; None: all."""
        validation = self.validation_tokens if validation_tokens is None else validation_tokens
        return (
            validation * (work.plain_layers + self.head * work.heads)
            + work.run_layers * (self.calibration_tokens + validation + self.fit)
            + work.solved_layers * self.solve
        )

    def distill(self, num_kept: int, *, tokens: int) -> float:
        """Price of a short distillation: a student's passes beside those of the dense model; validation text before and after."""
        training = tokens * ((1 + BACKWARD) * (num_kept + self.head) + self.num_layers + self.head)
        return training + 2 * self.validation_tokens * (num_kept + self.head)

    @property
    def trace(self) -> float:
        """The dense model's layers on the calibration text."""
        return float(self.calibration_tokens * self.num_layers)

    @property
    def gradient(self) -> float:
        """The dense model's gradient on the calibration text."""
        return (1 + BACKWARD) * self.calibration_tokens * (self.num_layers + self.head)


def set_prices(anatomy: Anatomy, *, calibration_tokens: int, validation_tokens: int) -> Prices:
    """Count a model's multiply-adds; layers are taken to be alike."""
    num_layers, width = anatomy.num_layers, int(anatomy.config.hidden_size)
    layer = sum(weight.numel() for weight in anatomy.layers.parameters() if weight.ndim >= 2) / num_layers
    outlet = anatomy.find_output_projection(num_layers // 2)
    reads = 0 if outlet is None else outlet.num_inputs
    systems = len(RIDGES) + 1  # and the best one again on all positions
    both = calibration_tokens + validation_tokens
    fit = calibration_tokens * reads**2 + systems * reads**3 / 3
    solve = (calibration_tokens + both) * reads * width + (
        systems + len(RIDGES)
    ) * reads**2 * width  # and errors, held out
    return Prices(
        num_layers=num_layers,
        calibration_tokens=calibration_tokens,
        validation_tokens=validation_tokens,
        head=int(anatomy.config.vocab_size) * width / layer,
        fit=fit / layer,
        solve=solve / layer,
    )
