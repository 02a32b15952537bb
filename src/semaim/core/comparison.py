"""Which one is best: results of groups of runs, averaged over seeds, as a table with the winner marked.

The tables at the end of a sweep, of `semaim status`, of a sweep's page in MLflow and of `semaim report` are made here.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from semaim.core.headline import LOSS, PERCENT, digits, headlines, lower_is_better
from semaim.core.tables import limited_markdown_table, text_table
from semaim.errors import UserError

MAX_METRICS = 4  # columns of a table besides the options
WIDTH = 100  # of a table on the screen
MAX_VALUE = 60  # characters of an option's value
DATA = ("data", "data.root")  # between these no result compares
METHOD = "method"  # an option of groups that their other options determine
# Between these the loss of pretraining differs because what counts in it is harder or easier to predict. A group of
# options stands for each of them.
TO_PREDICT = (
    METHOD, "permutation", "semantic_map", "target", "data", "experiment", "task", "model.segments", "model.visible",
    "model.hidden", "model.mask_unit",
)  # fmt: skip


@dataclass(frozen=True)
class Score:
    """A metric of a group of runs.

    Attributes:
        mean: over the runs.
        deviation: sample standard deviation over the runs; None of a single run, unless that states its own.
        runs: their number; 0 if it is unknown, of a published value.
    """

    mean: float
    deviation: float | None
    runs: int

    def text(self, metric: str) -> str:
        """Such as "93.6 ± 0.4 (3)"."""
        spread = "" if self.deviation is None else f" ± {_difference(metric, self.deviation)}"
        return f"{digits(metric, self.mean)}{spread}" + (f" ({self.runs})" if self.runs else "")


def _difference(metric: str, value: float) -> str:
    """A difference or deviation, of which two digits mean something."""
    return digits(metric, value) if PERCENT.fullmatch(metric) else f"{value:.2g}"


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed.

    Attributes:
        options: what distinguishes them from other groups.
        scores: by metric, as in MLflow (`eval/knn_10_mean`); empty if no run has a result.
        name: what to call it in a sentence, if that is not its options.
        counterpart: published groups with the same one are listed under the first such group; empty for none.
    """

    options: Mapping[str, str]
    scores: Mapping[str, Score]
    name: str = ""
    counterpart: str = ""

    @property
    def label(self) -> str:
        """The name, else the options in a line, but for the method, which they determine; of one option, its value."""
        if self.name:
            return self.name
        options = {option: value for option, value in self.options.items() if option != METHOD} or self.options
        if len(options) == 1:
            return _short(next(iter(options.values())))
        return " ".join(f"{option}={_short(value)}" for option, value in options.items() if value)


def _short(value: str) -> str:
    """A value that fits a cell; the ends of long lists and paths tell most."""
    half = MAX_VALUE // 2 - 2
    return value if len(value) <= MAX_VALUE else f"{value[:half]}...{value[-half:]}"


def pooled(runs: Iterable[tuple[Mapping[str, str], Mapping[str, float]]]) -> list[Group]:
    """Groups of runs with the same options, in the order of their first runs.

    Args:
        runs: options without the seed, and metrics by name, of each run. `<metric>_std` is the deviation that a single
            run states itself.
    """
    results: dict[tuple[tuple[str, str], ...], list[Mapping[str, float]]] = {}
    for options, metrics in runs:
        results.setdefault(tuple(options.items()), []).append(metrics)
    return [Group(dict(options), _scores(each)) for options, each in results.items()]


def _scores(results: Sequence[Mapping[str, float]]) -> dict[str, Score]:
    scores = {}
    for name in dict.fromkeys(name for metrics in results for name in metrics):
        values = [metrics[name] for metrics in results if name in metrics]
        own = next((metrics[f"{name}_std"] for metrics in results if f"{name}_std" in metrics), None)
        deviation = statistics.stdev(values) if len(values) > 1 else own
        scores[name] = Score(statistics.fmean(values), deviation, len(values))
    return scores


@dataclass(frozen=True)
class Comparison:
    """Groups, the best first, and what there is to say of the first ones.

    Attributes:
        groups: those without the metric last.
        metric: what they are compared by; None if they have none in common.
        chosen: whether the user named it.
        published: groups that are not compared, but listed under their counterparts, or else below.
    """

    groups: Sequence[Group]
    metric: str | None
    chosen: bool = False
    published: Sequence[Group] = ()

    @cached_property
    def ranked(self) -> list[Group]:
        """The groups that can be compared."""
        return [group for group in self.groups if self.metric in group.scores] if self.is_fair else []

    @property
    def is_fair(self) -> bool:
        """Whether the metric tells which group is better."""
        parts = (f"{option}." for option in self._options)
        misleads = self.metric == LOSS and any(part.startswith(f"{each}.") for part in parts for each in TO_PREDICT)
        return self.metric is not None and not self._is_on_several_data and (self.chosen or not misleads)

    @property
    def _options(self) -> list[str]:
        """The options that distinguish the groups."""
        return list(dict.fromkeys(option for group in self.groups for option in group.options))

    @property
    def _is_on_several_data(self) -> bool:
        return not set(DATA).isdisjoint(self._options)

    @property
    def best(self) -> Group | None:
        """The best group; None if there is nothing to choose from, or if others equal it as far as shown."""
        return self._equals[0] if len(self.ranked) > 1 and len(self._equals) == 1 else None

    @cached_property
    def _equals(self) -> list[Group]:
        """The groups whose score reads like that of the first."""
        metric = self.metric or ""
        shown = [digits(metric, group.scores[metric].mean) for group in self.ranked]
        return [group for group, text in zip(self.ranked, shown, strict=True) if text == shown[0]]

    def _score(self, place: int) -> Score:
        assert self.metric is not None
        return self.ranked[place].scores[self.metric]

    @property
    def verdict(self) -> str:
        """A line on which group is best, and whether that is more than chance; empty for a single group."""
        if sum(bool(group.scores) for group in self.groups) < 2:
            return ""
        if self.metric is None:
            return "no winner: they have no metric in common; --by METRIC compares those that have it"
        if self._is_on_several_data:
            return "no winner: results on different data do not compare"
        if not self.is_fair:
            return "no winner: losses do not compare what is harder or easier to predict; evaluate it, as then=[knn]"
        if len(self.ranked) < 2:
            return f"only {self.ranked[0].label} has {self.metric}"
        if (equals := len(self._equals)) > 1:
            which = " and ".join(group.label for group in self._equals) if equals == 2 else f"the first {equals}"
            return f"no winner by {self.metric}: {which} are equal"
        first, second = self.ranked[:2]
        ahead = _difference(self.metric, abs(self._score(0).mean - self._score(1).mean))
        return f"best by {self.metric}: {first.label}, {ahead} ahead of {second.label}; {self._caution()}"

    @property
    def brief(self) -> str:
        """All in a line: the verdict, or the score of a single group."""
        if self.verdict or self.metric is None:
            return self.verdict
        return f"{self.metric} {self.ranked[0].scores[self.metric].text(self.metric)}" if self.ranked else ""

    def _caution(self) -> str:
        first, second = self._score(0), self._score(1)
        if first.runs == second.runs == 1:
            return "one seed each: differences may be noise"
        if 1 in (first.runs, second.runs):
            return "one of them has one seed: the difference may be noise"
        spread = math.hypot(first.deviation or 0.0, second.deviation or 0.0)
        within = abs(first.mean - second.mean) <= spread
        return f"the difference is {'within' if within else 'more than'} the spread over seeds"

    @property
    def metrics(self) -> list[str]:
        """The metrics of the table: first the one that decides, then the most demanding ones."""
        known = dict.fromkeys(name for group in (*self.groups, *self.published) for name in group.scores)
        first = [] if self.metric is None else [self.metric]
        return list(dict.fromkeys([*first, *headlines(known)]))[:MAX_METRICS]

    def rows(self, metrics: Sequence[str]) -> list[list[str]]:
        """The cells of the table, with a header."""
        groups = list(self._listed())
        options = list(dict.fromkeys(option for group in groups for option in group.options))
        mark = self.best is not None
        rows = [[*[""] * mark, *options, *metrics]]
        for group in groups:
            marked = ["best" if group is self.best else ""] * mark
            scores = [group.scores[name].text(name) if name in group.scores else "-" for name in metrics]
            rows.append([*marked, *(_short(group.options.get(option, "")) for option in options), *scores])
        return rows

    def _listed(self) -> Iterator[Group]:
        left = list(self.published)
        for group in self.groups:
            yield group
            beside = [each for each in left if group.counterpart and each.counterpart == group.counterpart]
            yield from beside
            left = [each for each in left if each not in beside]
        yield from left

    def _heading(self, what: str) -> str:
        return f"{what}: mean ± deviation over seeds (number of runs)" + (", best first" if self.best else "")

    def text(self, what: str) -> str:
        """Heading, table and verdict for the screen; metrics that do not fit are left out.

        Args:
            what: what is compared, such as "6 runs".
        """
        metrics = self.metrics
        while len(metrics) > 1 and max(map(len, text_table(self.rows(metrics)).splitlines())) > WIDTH:
            metrics = metrics[:-1]
        return "\n".join(filter(None, [self._heading(what), text_table(self.rows(metrics)), self.verdict]))

    def markdown(self, what: str, max_characters: float = math.inf) -> str:
        """The same for a page, with all metrics; the last groups are left out of a table that is too long.

        Args:
            what: what is compared.
            max_characters: of the table.
        """
        table = limited_markdown_table(self.rows(self.metrics), max_characters, padded=True)
        return "\n\n".join(filter(None, [self._heading(what), table, self.verdict]))


def compare(groups: Sequence[Group], by: str | None = None) -> Comparison:
    """Sort groups by a metric, the best first.

    Args:
        groups: at least one.
        by: the metric, as in MLflow or without what is before the slash; by default the most demanding one that all
            groups with results have.

    Raises:
        UserError: if no group has this metric.
    """
    names = [set(group.scores) for group in groups if group.scores]
    metric = named_metric(by, set().union(*names)) if by else None
    if not by and names:
        ordered = [name for group in groups for name in group.scores if all(name in each for each in names)]
        metric = next(iter(headlines(ordered)), None)
    comparison = Comparison(groups, metric, by is not None)

    def place(group: Group) -> tuple[bool, float]:
        if metric is None or not comparison.is_fair:
            return not group.scores, 0.0
        mean = group.scores[metric].mean if metric in group.scores else math.inf
        return metric not in group.scores, mean if lower_is_better(metric) else -mean

    return replace(comparison, groups=sorted(groups, key=place))


def named_metric(by: str, known: set[str]) -> str:
    """The metric that a user names, among the known ones; raises UserError if there is none."""
    found = [name for prefix in ("", "eval/", "online/", "train/") if (name := f"{prefix}{by}") in known]
    if not found:
        there = ", ".join(sorted(name for name in known if not name.endswith("_std"))) or "none yet"
        raise UserError(f"--by {by}: there is no such metric here; there are: {there}")
    return found[0]
