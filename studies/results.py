"""Write docs/results.md from the published records: python -m studies.results"""

import json
from pathlib import Path
from typing import Any

import jinja2

from seed import study_dir
from seed.evidence import Comparison, FidelityStudy, RecoveryComparison
from seed.experiments import compare, fidelity, recoveries
from seed.plans import SearchPlan
from seed.records import DenseResult, DistillResult, Frontier
from seed.reporting.experiment_page import format_cost, name_key
from seed.reporting.wording import escape_text, format_change, format_interval, format_signed, name_proxy
from studies.claims.verdicts import Evidence, judge_claims

STUDIES = Path(__file__).parent
PAGE = STUDIES.parent / "docs" / "results.md"
LANDSCAPES = {  # of the benchmark's part regret: how they are named to readers
    "demo12_closed_form": "demo, up to 4 of 12, with recovery",
    "demo12_no_recovery": "demo, up to 8 of 12, without",
    "llama12_closed_form": "Llama, up to 4 of 12, with recovery",
    "llama12_no_recovery": "Llama, up to 6 of 12, without",
    "llama22_closed_form": "Llama, up to 3 of 22, with recovery",
    "llama22_no_recovery": "Llama, up to 3 of 22, without",
    "llama32_closed_form": "Llama, up to 2 of 32, with recovery",
}


def render_page() -> str:
    """Return the page that the records make."""
    environment = jinja2.Environment(  # noqa: S701
        loader=jinja2.FileSystemLoader(STUDIES),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "change": format_change,
        "interval": format_interval,
        "signed": format_signed,
        "proxy": name_proxy,
        "key": name_key,
        "pick": lambda names, table: [table[name] for name in names],
        "one_line": lambda text: escape_text(" ".join(text.split())),
        "regret": format_regret,
        "spread": format_spread,
    }
    study = read_record("fidelity.record/fidelity.json", FidelityStudy)
    recovered = read_record("recoveries.record/recoveries.json", RecoveryComparison)
    template = environment.get_template("results.md.jinja")
    return template.render(
        demo=read_search("demo"),
        parts=read_search("parts"),
        smollm2=read_search("smollm2"),
        depths=read_depths("smollm2"),
        samples=read_json("smollm2.record/samples.json"),
        fidelity=fidelity.summarize_fidelity(study),
        fidelity_study=study,
        compare=read_comparison("compare.record/compare.json"),
        compare_4=read_comparison("compare.record/compare-4.json"),
        compare_real=read_comparison("smollm2.record/compare.json"),
        strategies={name: title for name, (title, _) in compare.NAMES.items()} | {"gp": "GP"},
        claims=judge_claims(read_record("claims/record/claims.json", Evidence)),
        recovered=recovered,
        recovered_rows=recoveries.summarize_recoveries(recovered),
        recoveries={name: title for name, (title, _) in recoveries.NAMES.items()},
        landscapes=LANDSCAPES,
        bench={name: part["fields"] for name, part in read_json("bench.json")["parts"].items()},
    )


def read_record(name: str, kind: type[study_dir.T]) -> study_dir.T:
    """Return a published record."""
    return study_dir.read_record(STUDIES / name, kind)


def read_json(name: str) -> Any:
    """Return a published file that is no record."""
    return json.loads((STUDIES / name).read_text())


def read_search(name: str) -> dict[str, Any]:
    """Return a search: its plan, the dense model, and its distilled models, fewest dropped layers first."""
    paths = (STUDIES / f"{name}.record/distilled").iterdir()
    models = [read_record(f"{name}.record/distilled/{path.name}", DistillResult) for path in paths]
    models.sort(key=lambda model: (-model.size.num_params, model.candidate.parts))
    return {
        "plan": read_record(f"{name}.record/plan.json", SearchPlan),
        "dense": read_record(f"{name}.record/dense.json", DenseResult),
        "frontier": read_record(f"{name}.record/frontier.json", Frontier),
        "models": models,
    }


def read_depths(name: str) -> list[dict[str, Any]]:
    """Return for each depth of a search how many sets were scored, and the best by closed form."""
    by_depth: dict[int, list[dict[str, Any]]] = {}
    for trial in read_json(f"{name}.record/trials.json"):
        by_depth.setdefault(len(trial["dropped"]), []).append(trial)
    return [
        {"depth": depth, "scored": len(found), "best": min(found, key=lambda trial: trial["ppl_ratio"])}
        for depth, found in sorted(by_depth.items())
    ]


def read_comparison(name: str) -> dict[str, Any]:
    """Return a comparison, and for each strategy its cost and what it reached at each depth; best of the deepest first."""
    comparison = read_record(name, Comparison)
    summary = compare.summarize_comparison(comparison)
    cells: dict[str, dict[str, str]] = {}
    for row in sorted(summary.rows, key=lambda row: -row.num_dropped):
        told = "the same set" if row.excess.value == 0 else format_change(row.excess)
        if row.strategy == summary.reference:
            told = format_interval(row.ppl_ratio)
        cost = format_cost(row.cost, comparison.budget)
        cells.setdefault(row.strategy, {"cost": cost})[f"{row.num_dropped} dropped"] = told
    return {"record": comparison, "cells": cells}


def format_regret(summary: dict[str, dict[str, float]]) -> str:
    """Return the mean regret after 57 and after 100 evaluations."""
    means = (summary[budget]["mean"] for budget in ("57", "100"))
    return " / ".join(">100" if mean > 100 else f"{mean:.2f}" for mean in means)


def format_spread(spread: dict[str, float]) -> str:
    """Return a median with the tenth and the ninetieth percentile: ``1.39 (1.33 to 1.42)``."""
    return f"{spread['median']:.2f} ({spread['p10']:.2f} to {spread['p90']:.2f})"


def main() -> None:
    """Write the page."""
    study_dir.write_bytes(PAGE, render_page().encode())
    print(PAGE)


if __name__ == "__main__":
    main()
