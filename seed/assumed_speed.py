"""How fast a model would run on a device that is not here, by published rates: ``cuda:24GB``, ``cuda:80GB``, ``cpu:16GB``."""

import re
from dataclasses import dataclass

from seed.cli import BYTES
from seed.cost import Shape
from seed.distillation.memory import TRAINED_TOKENS
from seed.speed import TRAINING_FORWARDS, Speed

NAME = re.compile(r"(?P<kind>cpu|cuda):(?P<size>\d.*b)", re.I)
ACHIEVED = 0.5  # of published rates
LAUNCH_SECONDS = 1e-3  # of a layer on a GPU, however few tokens: its kernels are started one by one
LOGITS_PASSES = 6  # over float32 logits, for a loss
BILLION, TRILLION = 1e9, 1e12


@dataclass(frozen=True, kw_only=True)
class Device:
    """A kind of device by its makers' numbers: operations of matrix products a second, and bytes a second of its memory."""

    kind: str  # "cpu" or "cuda"
    like: str
    num_bytes: float
    bfloat16: float
    float32: float
    float64: float
    memory: float

    @property
    def name(self) -> str:
        """As a plan says it."""
        return f"{'a GPU' if self.kind == 'cuda' else 'a CPU'} with {self.num_bytes / BILLION:g} GB"

    def describe(self) -> str:
        """Say that nothing was timed, and what times are made of."""
        rates = ", ".join(
            f"{getattr(self, name) / TRILLION:g} in {name}" for name in ("bfloat16", "float32", "float64")
        )
        return (
            f"times are assumed, nothing was timed: {100 * ACHIEVED:.0f} % of the published rates of {self.like}, "
            f"TFLOP/s {rates}, {self.memory / BILLION:,.0f} GB/s"
        )


# GPUs by NVIDIA's data sheets, dense, float32 without TensorFloat-32; the CPU by counting: 2 * 8 * 2 operations a cycle and core.
DEVICES = (
    Device(
        kind="cpu",
        like="8 cores with AVX2 at 2 GHz and two channels of memory",
        num_bytes=16e9,
        bfloat16=0.5e12,
        float32=0.5e12,
        float64=0.25e12,
        memory=50e9,
    ),
    Device(
        kind="cuda",
        like="a GeForce RTX 4090",
        num_bytes=24e9,
        bfloat16=165e12,
        float32=83e12,
        float64=1.3e12,
        memory=1008e9,
    ),
    Device(
        kind="cuda",
        like="an A100 80GB",
        num_bytes=80e9,
        bfloat16=312e12,
        float32=19.5e12,
        float64=19.5e12,
        memory=2039e9,
    ),
)


def find_device(name: str | None) -> Device | None:
    """The device that a name with a size asks for, with the rates of the next smaller one that is known; None: it has none."""
    match = NAME.fullmatch(name or "")
    if match is None:
        return None
    try:
        num_bytes = BYTES.read(match["size"])
    except ValueError:
        return None
    known = [device for device in DEVICES if device.kind == match["kind"].lower()]
    nearest = [device for device in known if device.num_bytes <= num_bytes][-1:] or known[:1]
    return Device(**vars(nearest[0]) | {"num_bytes": num_bytes})


def assume_speed(device: Device, shape: Shape, *, window_tokens: int) -> Speed:
    """How fast the parts of a model of this shape would run there, by what takes longest: arithmetic, memory, or starting it.

    Args:
        device: by its published rates.
        shape: of the model.
        window_tokens: that run through it at once.
    """
    memory, width, read = ACHIEVED * device.memory, shape.width, shape.mlp_width
    launch = LAUNCH_SECONDS * (device.kind == "cuda")

    def multiply(weights: int, number_bytes: int) -> float:
        return 2 * weights / (ACHIEVED * (device.float32 if number_bytes == 4 else device.bfloat16))

    def price_layer(number_bytes: int) -> float:
        arithmetic = multiply(shape.layer_params + window_tokens * width, number_bytes)
        return max(arithmetic, launch / max(window_tokens, TRAINED_TOKENS))

    layer = price_layer(shape.number_bytes)
    trained = price_layer(2) if launch else layer  # GPUs train in bfloat16
    fit = 2 * read**3 + 22 * read**2 * width  # six factors, and eleven products of them
    return Speed(
        layer=layer,
        head=multiply(shape.vocabulary * width, shape.number_bytes) + 4 * LOGITS_PASSES * shape.vocabulary / memory,
        recovery=(fit / (ACHIEVED * device.float64), 2 * read * (read + width) / (ACHIEVED * device.float32)),
        step=max(shape.num_layers * launch, shape.num_params * shape.number_bytes / memory),
        num_layers=shape.num_layers,
        training=TRAINING_FORWARDS * trained / layer,
    )
