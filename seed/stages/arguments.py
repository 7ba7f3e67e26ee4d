"""The command line of the search: every option, in groups; what is not typed is not there.

Says what can be typed and how it reads; ``planning`` checks what it means.
"""

import argparse
from pathlib import Path

from seed.optimize.sampler import SAMPLERS
from seed.optimize.space import list_presets
from seed.stages.options import (
    CommandParser,
    add_json,
    any_float,
    positive_int,
    size_in_bytes,
    time_in_seconds,
    whole_number,
)
from seed.stages.recoveries import RECOVERIES
from seed.stages.settings import DTYPES


def make_parser() -> CommandParser:
    """The command line; a setting that is not given comes from the model's preset."""
    parser = CommandParser(
        prog="python -m seed.search",
        description="Find the layers a language model can live without, and hand back the models worth keeping.",
        epilog="The same command again continues a stopped search.",
        argument_default=argparse.SUPPRESS,
    )
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model", metavar="MODEL", help=f"{', '.join(list_presets())}; a hub id; or a directory (default: demo)"
    )
    model.add_argument("--revision", metavar="COMMIT", help="revision of a hub model")
    model.add_argument("--trust-remote-code", action="store_true", help="run code that the model brings along")
    model.add_argument("--device", help="cpu, cuda, cuda:1 (default: cuda where there is one)")
    model.add_argument(
        "--dtype", choices=DTYPES, help="type to compute in (default: float32 on the CPU, else bfloat16)"
    )
    search = parser.add_argument_group("search")
    search.add_argument(
        "--trials",
        type=positive_int,
        metavar="N",
        help="candidates that are scored (default: the model's, or all that a sweep scores within its budget)",
    )
    search.add_argument(
        "--sweep-budget",
        type=time_in_seconds,
        metavar="TIME",
        help="score the whole space by closed form when that takes at most so long, such as 90s, 10m, 2h; 0: never "
        "(default: 10m)",
    )
    search.add_argument(
        "--no-screen",
        dest="screen",
        action="store_false",
        help="distill even candidates that closed form shows to be hopeless",
    )
    search.add_argument("--sampler", choices=SAMPLERS, help="when the space is larger than --trials (default: subset)")
    search.add_argument(
        "--rung", type=positive_int, choices=(1, 2), help="objective: 1 closed-form recovery, 2 short distillation"
    )
    search.add_argument("--short-steps", type=positive_int, metavar="N", help="steps of short distillation at rung 2")
    search.add_argument("--rng-seed", type=whole_number, metavar="N", help="seed of all random numbers (default: 0)")
    search.add_argument(
        "--space",
        type=Path,
        metavar="FILE",
        help="a search space of your own, a TOML file like search_spaces/gpt2.toml",
    )
    search.add_argument("--min-dropped", type=positive_int, metavar="N", help="drop at least N layers (default: 1)")
    search.add_argument("--max-dropped", type=positive_int, metavar="N", help="drop at most N layers")
    search.add_argument(
        "--max-ppl-ratio",
        type=any_float,
        metavar="R",
        help="keep candidates up to this PPL ratio (by the proxy), such as 1.1",
    )
    search.add_argument(
        "--max-latency-ratio", type=any_float, metavar="R", help="keep candidates up to this latency ratio, such as 0.9"
    )
    search.add_argument(
        "--max-memory",
        type=size_in_bytes,
        metavar="SIZE",
        help="weights and KV cache of the timed workload, such as 1.8GB",
    )
    search.add_argument(
        "--stages",
        metavar="N+M",
        help="drop N layers, recover, drop M more from what was recovered, and so on; 1+... goes on until --max-ppl-ratio or "
        "--max-latency-ratio",
    )
    search.add_argument(
        "--no-one-shot",
        dest="one_shot",
        action="store_false",
        help="with --stages, leave out the search at once that it is compared with",
    )
    search.add_argument(
        "--start",
        type=Path,
        metavar="DIR",
        help="go on from a model that Seed exported; its original stays the teacher",
    )
    search.add_argument(
        "--frontier-size", type=positive_int, metavar="N", help="models that go on to distillation (default: 6)"
    )
    text = parser.add_argument_group(
        "text (demo, wikitext2, hub:NAME[:CONFIG], a text or JSONL file, or a directory of them)"
    )
    text.add_argument(
        "--recovery-text", metavar="SOURCE", help="trains; validation and test are split off where not given"
    )
    text.add_argument("--validation-text", metavar="SOURCE", help="decides")
    text.add_argument("--test-text", metavar="SOURCE", help="is read once at the end, for the numbers in the table")
    text.add_argument("--window-tokens", type=positive_int, metavar="N", help="length of the perplexity windows")
    text.add_argument(
        "--calibration-tokens", type=positive_int, metavar="N", help="recovery tokens that closed form is fitted on"
    )
    text.add_argument(
        "--validation-tokens", type=positive_int, metavar="N", help="validation tokens a candidate is scored on"
    )
    text.add_argument(
        "--test-tokens", type=positive_int, metavar="N", help="test tokens used (default: the preset's, or all)"
    )
    recovery = parser.add_argument_group("distillation")
    recovery.add_argument(
        "--distill-tokens", type=positive_int, metavar="N", help="recovery tokens for each frontier model"
    )
    recovery.add_argument(
        "--learning-rate", type=any_float, metavar="R", help="do not tune the learning rate, use this one"
    )
    recovery.add_argument(
        "--replicas",
        type=positive_int,
        metavar="N",
        help="distil each frontier model under N random seeds (default: 1)",
    )
    recovery.add_argument(
        "--recovery", choices=list(RECOVERIES), help="what is trained, and towards what (default: distillation)"
    )
    recovery.add_argument("--temperature", type=any_float, metavar="T", help="of both models' predictions (default: 1)")
    recovery.add_argument(
        "--ce-share", type=any_float, metavar="A", help="share of cross-entropy in the objective, 0 to 1 (default: 0)"
    )
    recovery.add_argument(
        "--lora-rank",
        type=positive_int,
        metavar="N",
        help="train low-rank updates only (--recovery lora), for models too large to train whole (default: 16)",
    )
    recovery.add_argument(
        "--width-baseline",
        action="store_true",
        help="for each depth also distil a model of all layers, cut to the same size in width",
    )
    recovery.add_argument(
        "--freeze-prefix", action="store_true", help="leave the layers before the first dropped one as they are"
    )
    recovery.add_argument(
        "--no-distill", dest="distill", action="store_false", help="stop at the frontier by the proxy"
    )
    recovery.add_argument(
        "--eval-command", metavar="CMD", help="your own judge: gets a model's directory, prints a number"
    )
    speed = parser.add_argument_group("latency")
    speed.add_argument("--latency-batch", type=positive_int, metavar="N", help="sequences decoded at once")
    speed.add_argument("--prompt-tokens", type=positive_int, metavar="N", help="tokens read before decoding")
    speed.add_argument("--new-tokens", type=positive_int, metavar="N", help="tokens decoded one by one")
    speed.add_argument(
        "--latency-repeats",
        type=positive_int,
        metavar="N",
        help="timed pairs of dense and cut model (default: until the ratio is within 1 %%, a minute at most)",
    )
    speed.add_argument(
        "--compiled", action="store_true", help="time torch.compile with a static cache instead of eager decoding"
    )
    speed.add_argument(
        "--latency-command", metavar="CMD", help="your own stopwatch: gets a model's directory, prints milliseconds"
    )
    place = parser.add_argument_group("study")
    place.add_argument("--study", metavar="NAME", help="name of the study's folder (default: the model's name)")
    place.add_argument("--studies-dir", type=Path, metavar="DIR", help="where studies lie (default: ./studies)")
    place.add_argument(
        "--storage",
        metavar="URL",
        help="where the Optuna study is shown: any Optuna storage, such as postgresql://USER@HOST/DB (default: a file in its folder)",
    )
    place.add_argument(
        "--workers",
        type=positive_int,
        metavar="N",
        help="so many evaluators on this machine, run by Ray (default: one for each GPU; else this process alone)",
    )
    place.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="evaluators on all GPUs of a Ray cluster: auto, or HOST:PORT of its head (docs/cluster.md)",
    )
    place.add_argument(
        "--dry-run",
        action="store_true",
        help="only say what the search would do and take, from the model's shape: no weights, no network, nothing written",
    )
    add_json(place)
    return parser
