"""Where the numbers come from: checkpoints and data by hash, commands, versions, settings; and all that was left out."""

from plum_jax.report.lenient import dictionary, number
from plum_jax.report.measures import words
from plum_jax.report.tables import as_lines


def run(subject, tables, unseen):
    """`tables`: {id: Table}. `unseen`: number of cards without a picture."""
    return {
        "counts": as_lines(tables["counts"]) if "counts" in tables else None,
        "unseen": unseen,
        "evaluations": [(e.label, evaluation_facts(e)) for e in subject.evaluations],
        "versions": versions(subject.record),
        "config": list(flatten(subject.config)),
    }


def evaluation_facts(evaluation):
    """[(name, text)] of an evaluation: what was scored on what, how, by which version."""
    results = evaluation.results
    facts = []
    for name in ("checkpoint", "predictions", "data"):
        held = results.get(name)
        if isinstance(held, dict):
            facts += [(f"{name}: {key}" if key != "path" else name, held[key]) for key in held if held[key] not in (None, "")]
        for entry in _list(held):
            facts.append((name, " ".join(str(v) for v in entry.values()) if isinstance(entry, dict) else entry))
    facts += [(name, results[name]) for name in ("command", "version", "seconds") if results.get(name) not in (None, "")]
    facts += [(f"setting: {words(k)}", v) for k, v in flatten(dictionary(results.get("settings")))]
    facts += [(f"mask scores: {words(k)}", v) for k, v in flatten(dictionary(results.get("calibration")))]
    facts += [("numbers that the prediction file claims", claim) for claim in _list(results.get("claims"))]
    facts += [(f"run.json: {name}", value) for name, value in versions(evaluation.record)]
    return [(name, str(value)) for name, value in facts]


def _list(value):
    return value if isinstance(value, list) else []


def versions(record):
    """run.json -> [(name, text)]: command, machine, versions, timings, inputs with hashes."""
    timings = [(f"seconds: {k}", f"{v:,.1f}") for k, v in dictionary(record.get("seconds")).items() if number(v) is not None]
    held = [(k, dictionary(v)) for k, v in dictionary(record.get("inputs")).items()]
    inputs = [(f"input: {k}", f"{v.get('path')} {v.get('sha256') or ''}") for k, v in held]
    whole = [(k, record[k]) for k in ("command", "status", "started", "finished", "device", "platform") if record.get(k)]
    if isinstance(record.get("argv"), list):
        whole.insert(0, ("command line", " ".join(map(str, record["argv"]))))
    return whole + sorted(dictionary(record.get("versions")).items()) + timings + inputs


def flatten(config, prefix=""):
    """Nested dictionary -> (dotted key, value), sorted."""
    for key, value in sorted(config.items()):
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
