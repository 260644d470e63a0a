"""What the recorded results say: for each question words, tables and charts, all of them computed.

    answer = ANSWERS["depth"](cells)

Nothing here is written by hand for a result that was seen: a difference is called real or noise by `statistics`.
Drawing the charts is `figures`, the page `report`.
"""

from __future__ import annotations

import math
import statistics as stdlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from resflow.study.cells import Cell, Compared, by_verdict, compare, figure, groups, listed, mean, runs, shown
from resflow.study.figures import Chart, Line
from resflow.study.statistics import holm, sample, welch, words

__all__ = ["ANSWERS", "Answer", "Table"]

SHORTCUTS = {
    "better": "a network with shortcuts fits the images worse than one without",
    "worse": "a network with shortcuts fits the images better than one without",
    "noise": "shortcuts make no difference beyond noise",
    "open": "what shortcuts change is open: too few runs",
    "untested": "shortcuts are not tested: it takes two runs of each",
}
"""What is said of the deepest networks, by how the plain one compares with the residual one."""
DEEPER = {
    "better": "get better with depth",
    "worse": "get worse with depth",
    "noise": "change with depth no more than by noise",
    "open": "may change with depth: too few runs to tell",
    "untested": "are not tested: it takes two runs of each",
}
"""What is said of a kind of networks, by how the deepest compares with the shallowest."""
TINY = 1e-12
"""A gradient below it is none at all."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text under a header."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(kw_only=True)
class Answer:
    """To one question."""

    sentences: list[str] = field(default_factory=list)
    """The first is the answer in short."""
    charts: list[Chart] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)


def depth(cells: Sequence[Cell]) -> Answer:
    """Training and test error by depth."""
    kinds = groups(cells)
    ends = [(kind[-1], kind[0]) for kind in kinds.values() if len(kind) > 1]
    residual = {cell.point.x: cell for cell in kinds.get("residual", [])}
    pairs = [(cell, residual[cell.point.x]) for cell in cells if cell.point.x in residual]
    pairs = [(one, other) for one, other in pairs if one is not other]
    compared = compare([*ends, *pairs], "train_error")
    # by what is compared, not by place: a pair of which one side diverged in every run is left out
    deeper = {each.one.point.group: each for each in compared if each.one.point.group == each.other.point.group}
    across = [each for each in compared if each.one.point.group != each.other.point.group]
    answer = Answer(
        charts=[
            _by_x("depth-training", "Training error by depth", "layers", "error (%)", kinds, "train_error"),
            _by_x("depth-test", "Test error by depth", "layers", "error (%)", kinds, "test_error"),
        ],
        tables=[_errors(cells)],
    )
    if not deeper:
        return _too_few(answer)
    verdicts = {kind: DEEPER[each.verdict] for kind, each in deeper.items()}
    told = [
        f"{listed(kinds_of)} networks {verdict}"
        for verdict in dict.fromkeys(verdicts.values())
        if (kinds_of := [kind for kind, said in verdicts.items() if said == verdict])
    ]
    deepest = [each for each in across if each.one.point.x == max(residual) and each.one.point.group == "plain"]
    told += [f"at {each.one.point.x:g} layers {SHORTCUTS[each.verdict]}" for each in deepest]
    short = "; ".join(told)
    answer.sentences.append(f"{short[0].upper()}{short[1:]}.")
    for kind, each in deeper.items():
        span = f"from {each.other.point.x:g} to {each.one.point.x:g} layers"
        answer.sentences.append(f"{kind.capitalize()}, {span}: training error {_turned(each)}.")
    for each in across:
        kind, layers = each.one.point.group, each.one.point.x
        answer.sentences.append(f"{kind.capitalize()} against residual, {layers:g} layers: training error {each}.")
    answer.sentences.append(
        "This is after few steps: it says how well such networks can be trained within them, not where they would end."
    )
    return answer


def gradients(cells: Sequence[Cell]) -> Answer:
    """Norms of the gradient of each convolution, at the start and after an epoch."""
    kinds = groups(cells)
    answer = Answer()
    for when, title in (("start", "at the initial weights"), ("epoch", "at the end of the first epoch")):
        lines = []
        for kind, row in kinds.items():
            norms = _profile(row[-1], when)
            if norms:
                layers = tuple(range(1, len(norms) + 1))
                lines.append(Line(label=f"{kind}, {row[-1].point.x:g} layers", x=layers, y=tuple(norms)))
        name = f"Gradient of each convolution {title}"
        chart = Chart(
            name=f"gradients-{when}",
            title=name,
            x="convolution, from the input on",
            y="norm of the gradient",
            kind="lines",
            lines=tuple(lines),
            log_y=True,
        )
        answer.charts.append(chart)
    pairs = [
        (one, other)
        for one, other in zip(kinds.get("plain", []), kinds.get("residual", []), strict=False)
        if one.point.x == other.point.x
    ]
    rows, ps = [], []
    for one, other in pairs:
        logs = [[math.log10(ratio) for ratio in _ratios(cell, "start")] for cell in (one, other)]
        ps.append(welch(sample(logs[0]), sample(logs[1])) if all(logs) else math.nan)
    for (one, other), p in zip(pairs, holm(ps), strict=True):
        cells_of = [one, other]
        ratios = [_times(_ratios(cell, when)) for when in ("start", "epoch") for cell in cells_of]
        rows.append((f"{one.point.x:g}", *ratios, words(p)))
    header = ("layers", "plain, start", "residual, start", "plain, after an epoch", "residual, after an epoch")
    answer.tables.append(Table(header=(*header, "difference at the start"), rows=tuple(rows)))
    if not pairs:
        return _too_few(answer)
    (one, other), p = pairs[-1], holm(ps)[-1]
    before = _times(_ratios(one, "start")), _times(_ratios(other, "start"))
    answer.sentences.append(
        f"At {one.point.x:g} layers, the first convolution's gradient is {before[0]} times the last's in a plain "
        f"network at the start, and {before[1]} times in a residual one ({words(p)})."
    )
    after = _times(_ratios(one, "epoch")), _times(_ratios(other, "epoch"))
    if "unknown" not in after:
        answer.sentences.append(f"After an epoch it is {after[0]} times, and {after[1]} times.")
    low, high = min(_ratios(one, "start"), default=1.0), max(_ratios(one, "start"), default=1.0)
    if low > 1:
        answer.sentences.append("In every run the plain network's gradients grow towards the input at the start.")
    elif high < 1:
        answer.sentences.append("In every run the plain network's gradients vanish towards the input at the start.")
    answer.sentences.append("The table has the first convolution's norm divided by the last's, by depth.")
    return answer


def zero_norm(cells: Sequence[Cell]) -> Answer:
    """Residual networks with and without the last norm of each block at zero."""
    kinds = groups(cells)
    base = {cell.point.x: cell for cell in kinds.get("He", [])}
    pairs = [(cell, base[cell.point.x]) for cell in kinds.get("last norm at zero", []) if cell.point.x in base]
    compared = compare(pairs, "validation_error")
    answer = Answer(
        charts=[
            _by_x("zero-validation", "Validation error by depth", "layers", "error (%)", kinds, "validation_error"),
            _by_x("zero-training", "Training error by depth", "layers", "error (%)", kinds, "train_error"),
        ],
        tables=[_errors(cells)],
    )
    if not compared:
        return _too_few(answer)
    depths = by_verdict(compared, lambda each: f"{each.one.point.x:g}")
    parts = [
        f"it helps at {listed(depths['better'])} layers" if depths["better"] else "",
        f"it hurts at {listed(depths['worse'])} layers" if depths["worse"] else "",
        f"it is open, for want of runs, at {listed(depths['open'])} layers" if depths["open"] else "",
        f"it is not tested at {listed(depths['untested'])} layers" if depths["untested"] else "",
    ]
    said = "; ".join(filter(None, parts)) or "at no depth does it make a difference beyond noise"
    answer.sentences.append(f"{said[0].upper()}{said[1:]}.")
    for each in compared:
        answer.sentences.append(f"{each.one.point.x:g} layers: validation error {each}.")
    norms = _profile(compared[-1].one, "start")
    silent = sum(norm < TINY for norm in norms)
    if norms:
        answer.sentences.append(
            f"In the first step {silent} of {len(norms)} convolutions of the deepest get no gradient: their branches "
            "are closed, and only the scales that close them move."
        )
    return answer


def front(cells: Sequence[Cell]) -> Answer:
    """Errors by parameters and multiply-accumulates."""
    kinds, what = groups(cells), "validation_error"
    known = [cell for cell in cells if cell.sample(what)]
    charts = [
        _priced("front-parameters", "Validation error by parameters", "parameters", kinds),
        _priced("front-macs", "Validation error by multiply-accumulates", "macs", kinds),
    ]
    answer = Answer(charts=charts, tables=[_errors(cells, priced=True)])
    article = [cell for cell in known if cell.point.group == "article"]
    others = [cell for cell in known if cell.point.group != "article"]
    if not article or not others:
        return _too_few(answer)
    best_article = min(article, key=lambda cell: mean(cell, what))
    best = min(known, key=lambda cell: (cell.diverged, mean(cell, what)))
    residual = {_key_of(cell): cell for cell in kinds.get("residual", [])}
    twins = [(cell, residual[_key_of(cell)]) for cell in kinds.get("plain", []) if _key_of(cell) in residual]
    pairs = [(cell, best_article) for cell in others] + [(cell, best) for cell in known if cell is not best] + twins
    against = {(id(each.one), id(each.other)): each for each in compare(pairs, what)}
    tested = [each for cell in others if (each := against[id(cell), id(best_article)]).verdict != "untested"]
    lasting = [each for each in tested if each.one.point.group == "residual" and each.is_as_good]
    reference = f"{best_article.point.label} ({shown(best_article.sample(what))})"
    if lasting:
        cheapest = min(lasting, key=lambda each: (_price(each.one, "macs"), _price(each.one, "parameters")))
        saved = [_saved(cheapest, key, name) for key, name in (("macs", "multiply-accumulates"), ("parameters", ""))]
        answer.sentences.append(
            f"{cheapest.one.point.label} is at least as accurate as {reference}, with {saved[0]} and "
            f"{saved[1]}parameters: validation error {cheapest}."
        )
        smallest = min(lasting, key=lambda each: _price(each.one, "parameters"))
        if smallest is not cheapest:
            saved = [_saved(smallest, "parameters", "parameters"), _saved(smallest, "macs", "multiply-accumulates")]
            answer.sentences.append(
                f"The smallest that is as accurate: {smallest.one.point.label}, with {saved[0]} and {saved[1]}: "
                f"{smallest}."
            )
    elif not tested:
        answer.sentences.append(f"What compares with {reference} is not tested: it takes two runs of each.")
    else:
        answer.sentences.append(f"No residual network here is as accurate as {reference}: none saves anything.")
    answer.sentences.append(
        "As accurate means: with a lower mean, or within the noise and no further above than the larger standard "
        "deviation. Of the article's network the better recipe counts."
    )
    for key, name in (("macs", "multiply-accumulates"), ("parameters", "parameters")):
        kept = [cell.point.label for cell in _pareto(known, key, what)]
        answer.sentences.append(f"On the front of {name} and mean validation error: {listed(kept)}.")
    answer.sentences.append(_choice(best, [against[id(cell), id(best)] for cell in known if cell is not best], what))
    for one, other in twins:
        if told := against.get((id(one), id(other))):
            answer.sentences.append(f"Without shortcuts, {one.point.label}: validation error {told}.")
    return answer


def _choice(best: Cell, near: Sequence[Compared], what: str) -> str:
    """The cheapest of those that are as good as the best, of those that were compared with it."""
    untested = sum(each.verdict == "untested" for each in near)
    equals = [best, *(each.one for each in near if each.is_as_good)]
    choice = min(equals, key=lambda cell: (_price(cell, "macs"), _price(cell, "parameters")))
    said = f"Lowest in the mean is {best.point.label} ({shown(best.sample(what))})"
    if untested:
        return f"{said}; {untested} others have too few runs to be told from it, so nothing is chosen."
    if choice is best:
        return f"{said}; none that is cheaper is as accurate: choose it for these images and so much training."
    return (
        f"{said}; as accurate is {choice.point.label} ({shown(choice.sample(what))}), which takes the "
        "fewest multiply-accumulates: choose that for these images and so much training."
    )


def factors(cells: Sequence[Cell]) -> Answer:
    """Each setting against the base."""
    what = "validation_error"
    base = next((cell for cell in cells if cell.point.group == "base"), None)
    answer = Answer()
    if base is None or base.sample(what) is None:
        return _too_few(answer)
    others = [cell for cell in cells if cell is not base and cell.sample(what)]
    compared = compare([(cell, base) for cell in others], what)
    verdicts = {id(each.one): each for each in compared}
    rows = []
    for cell in cells:
        each = verdicts.get(id(cell))
        told = "base" if cell is base else each.told if each else "diverged" if cell.diverged else "not run"
        by = f"{100 * each.difference:+.2f}" if each else ""
        errors = [shown(cell.sample(key)) for key in ("train_error", what, "test_error")]
        rows.append((cell.point.group, cell.point.label, runs(cell), *errors, by, told))
    header = ("factor", "setting", "runs", "training error", "validation error", "test error", "points", "against base")
    answer.tables.append(Table(header=header, rows=tuple(rows)))
    measured = [cell for cell in cells if cell.sample(what)]
    lines = []
    for kind in dict.fromkeys(cell.point.group for cell in measured):
        places = [(place, cell) for place, cell in enumerate(measured) if cell.point.group == kind]
        samples = [figure(cell, what) for _, cell in places]
        lines.append(
            Line(
                label=kind,
                x=tuple(100 * each.mean for each in samples),
                y=tuple(float(place) for place, _ in places),
                spread=tuple(0.0 if math.isnan(each.std) else 100 * each.std for each in samples),
            )
        )
    answer.charts.append(
        Chart(
            name="factors",
            title="Validation error by setting",
            x="error (%), mean and standard deviation",
            y="",
            kind="rows",
            lines=tuple(lines),
            ticks=tuple(f"{cell.point.label}" for cell in measured),
        )
    )
    found = by_verdict(compared, lambda each: _setting(each.one))
    if len(found["untested"]) == len(compared):
        return _too_few(answer)
    better, worse = listed(found["better"]), listed(found["worse"])
    answer.sentences.append(
        (f"Better than the base: {better}" if better else "Nothing is better than the base beyond noise")
        + (f"; worse: {worse}." if worse else "; nothing is worse.")
    )
    if noise := listed(found["noise"]):
        answer.sentences.append(f"Within the noise of the base, so no reason to choose either: {noise}.")
    if unsure := listed(found["open"]):
        answer.sentences.append(f"Open, as it fails the test only after correction: {unsure}.")
    if untested := listed(found["untested"]):
        answer.sentences.append(f"Not tested, for want of a second run: {untested}.")
    bad = [_setting(cell) for cell in cells if cell.diverged]
    if bad:
        answer.sentences.append(f"Diverged in some or all runs: {listed(bad)}.")
    spread = figure(base, what).std
    if not math.isnan(spread):
        answer.sentences.append(
            f"The base's own runs, which differ by seed alone, have a standard deviation of {100 * spread:.2f} points. "
            "Other settings keep the base's learning rate, which need not be their best."
        )
    return answer


def scaling(cells: Sequence[Cell]) -> Answer:
    """Training images per second."""
    answer, what = Answer(), "images_per_second"
    axes = {"batch": "images a batch", "depth": "layers", "width": "channels of the first stage", "workers": "workers"}
    rows = []
    for kind, row in groups(cells).items():
        rated = [(cell.point.x, figure(cell, what).mean) for cell in row if cell.sample(what)]
        rows += [(kind, f"{x:g}", f"{rate:,.0f}") for x, rate in rated]
        if not rated:
            continue
        (first, slow), (last, fast) = rated[0], rated[-1]
        line = Line(label=kind, x=tuple(x for x, _ in rated), y=tuple(rate for _, rate in rated))
        chart = Chart(
            name=f"speed-{kind}",
            title=f"Images per second by {kind}",
            x=axes[kind],
            y="images/s",
            kind="lines",
            lines=(line,),
            log_x=kind != "workers",
        )
        answer.charts.append(chart)
        if len(rated) > 1:
            rates = f"{slow:,.0f} to {fast:,.0f} images/s, {fast / slow:.2f} times"
            answer.sentences.append(f"By {kind}, from {first:g} to {last:g} {axes[kind]}: {rates}.")
    answer.tables.append(Table(header=("by", "value", "images/s"), rows=tuple(rows)))
    if not answer.sentences:
        return _too_few(answer)
    answer.sentences.append(
        "One measurement of each, so small differences mean nothing; workers are processes of one thread on this "
        "machine that meet through gloo, and one of them trains in this process, without Ray's cluster."
    )
    return answer


ANSWERS: Mapping[str, Callable[[Sequence[Cell]], Answer]] = {
    "depth": depth,
    "gradients": gradients,
    "zero-norm": zero_norm,
    "front": front,
    "factors": factors,
    "scaling": scaling,
}


def _too_few(answer: Answer) -> Answer:
    answer.sentences.append("Too few of its trials have run to say anything.")
    return answer


def _turned(each: Compared) -> str:
    """A comparison of the deepest with the shallowest, told in the order in which one reads."""
    before, after = (shown(cell.sample(each.what)) for cell in (each.other, each.one))
    return f"from {before} to {after}, {each.told}"


def _setting(cell: Cell) -> str:
    return f"{cell.point.group} {cell.point.label}"


def _errors(cells: Sequence[Cell], *, priced: bool = False) -> Table:
    rows = []
    for cell in cells:
        price = [f"{_price(cell, key):,.0f}" if cell.results else "" for key in ("parameters", "macs")]
        errors = [shown(cell.sample(key)) for key in ("train_error", "validation_error", "test_error")]
        rows.append((cell.point.label, runs(cell), *(price if priced else []), *errors))
    price_header = ("parameters", "MACs") if priced else ()
    header = ("network", "runs", *price_header, "training error", "validation error", "test error")
    return Table(header=header, rows=tuple(rows))


def _by_x(name: str, title: str, x: str, y: str, kinds: Mapping[str, list[Cell]], what: str) -> Chart:
    lines = []
    for kind, row in kinds.items():
        samples = [(cell.point.x, found) for cell in row if (found := cell.sample(what))]
        lines.append(
            Line(
                label=kind,
                x=tuple(x for x, _ in samples),
                y=tuple(100 * found.mean for _, found in samples),
                spread=tuple(0.0 if math.isnan(found.std) else 100 * found.std for _, found in samples),
            )
        )
    errors = [value for line in lines for value in line.y]
    # else those below a per cent lie on one line where others reach half of the images
    wide = bool(errors) and 0 < min(errors) < max(errors) / 10
    return Chart(name=name, title=title, x=x, y=y, kind="lines", lines=tuple(lines), log_y=wide)


def _priced(name: str, title: str, key: str, kinds: Mapping[str, list[Cell]]) -> Chart:
    lines = []
    for kind, row in kinds.items():
        known = [(cell, found) for cell in row if (found := cell.sample("validation_error"))]
        lines.append(
            Line(
                label=kind,
                x=tuple(_price(cell, key) for cell, _ in known),
                y=tuple(100 * found.mean for _, found in known),
                spread=tuple(0.0 if math.isnan(found.std) else 100 * found.std for _, found in known),
            )
        )
    axis = "parameters" if key == "parameters" else "multiply-accumulates an image"
    return Chart(name=name, title=title, x=axis, y="error (%)", kind="dots", lines=tuple(lines), log_x=True, log_y=True)


def _price(cell: Cell, key: str) -> float:
    return float(cell.results[0][key])


def _saved(each: Compared, key: str, name: str) -> str:
    times = _price(each.other, key) / _price(each.one, key)
    unit = f" {name}" if name else " "
    return f"{times:.1f} times fewer{unit}" if times >= 1 else f"{1 / times:.1f} times more{unit}"


def _pareto(cells: Sequence[Cell], key: str, what: str) -> list[Cell]:
    """Those that no other beats in both, the cheapest first."""
    kept: list[Cell] = []
    for cell in sorted(cells, key=lambda cell: (_price(cell, key), mean(cell, what))):
        if not kept or mean(cell, what) < mean(kept[-1], what):
            kept.append(cell)
    return kept


def _key_of(cell: Cell) -> str:
    """What a plain network and its residual twin have in common: width and depth."""
    net = {key: value for key, value in cell.point.trials[0].net.items() if key != "block"}
    return repr(sorted(net.items()))


def _profile(cell: Cell, when: str) -> list[float]:
    """Geometric means over the runs of each convolution's gradient norm; zeros stay so."""
    norms = [result["gradients"][when] for result in cell.results if when in result.get("gradients", {})]
    columns = zip(*norms, strict=True)
    return [0.0 if min(column) < TINY else stdlib.geometric_mean(column) for column in columns]


def _ratios(cell: Cell, when: str) -> list[float]:
    """Of each run: the first convolution's gradient norm by the last's."""
    norms = [result["gradients"][when] for result in cell.results if when in result.get("gradients", {})]
    return [run[0] / run[-1] for run in norms if min(run[0], run[-1]) > TINY]


def _times(ratios: Sequence[float]) -> str:
    if not ratios:
        return "unknown"
    middle = stdlib.geometric_mean(ratios)
    return f"{middle:,.0f}" if middle >= 100 else f"{middle:.3g}"
