"""Say what a study takes on a cluster: jobs, submissions, hours, storage, and a simulated schedule.

The jobs are those of Snakemake's own dry run, for each pair in a checkout of its own. Groups, and rules whose jobs have
a node to themselves, are the profile's. Hours are those of `dynatree estimate`, for runs and passes; any other job
counts as its start alone. Files are as large as dvc.lock of this checkout says, records and tables by decoded tokens.
"""

import argparse
import heapq
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from graphlib import TopologicalSorter
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import stages
import yaml

from dynatree import files
from dynatree.commands import options
from dynatree.errors import UserError, readable, reported
from dynatree.files import drafter_of, features_of
from dynatree.study import estimate, grid, params, sections

GIB = 2**30


class Task(NamedTuple):
    """A job: its seconds, whether it has a node to itself, and the places among all of the jobs that it needs."""

    rule: str
    seconds: float
    alone: bool
    needs: list[int]


class Profile(NamedTuple):
    """Of a cluster's profile: rules that have a node to themselves, groups by rule, how many are submitted as one."""

    alone: set[str]
    groups: dict[str, str]
    together: dict[str, int]


def profile(path: Path) -> Profile:
    """What a profile's config.yaml says."""
    with readable(str(path)):
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
        asked = given["set-resources"].items()
        alone = {rule for rule, resources in asked if "--exclusive" in resources.get("slurm_extra", "")}
        return Profile(alone, given["groups"], given["group-components"])


def local(root: Path) -> set[str]:
    """The rules that run where Snakemake runs, as the Snakefile names them."""
    text = (root / "Snakefile").read_text(encoding="utf-8")
    return set(re.findall(r"^    (\w+),$", text.partition("localrules:")[2].partition("\n\n")[0], re.M))


def plans(root: Path, known: sections.Params, pairs: Sequence[str]) -> list[list[stages.Job]]:
    """The jobs of each pair. Pairs that are made alike have one dry run."""
    found: dict[str, list[stages.Job]] = {}
    how = {pair: known.pairs[pair].model_dump_json() for pair in pairs}
    for pair in pairs:
        if how[pair] not in found:
            found[how[pair]] = stages.plan(stages.dry_run(root, "--config", f"pair={pair}"))
    return [found[how[pair]] for pair in pairs]


def needs(jobs: Sequence[stages.Job]) -> list[list[int]]:
    """Places of the jobs that make what each job reads."""
    maker = {path: place for place, job in enumerate(jobs) for path in job.outputs}
    return [sorted({maker[path] for path in job.inputs if path in maker}) for job in jobs]


def submissions(jobs: Sequence[stages.Job], before: Sequence[list[int]], here: set[str], of: Profile) -> Counter[str]:
    """What goes to the queue: jobs by rule, groups by name. Of a group, jobs that need one another go together."""
    group = [of.groups.get(job.rule) for job in jobs]
    head = [*range(len(jobs))]

    def first(place: int) -> int:
        while head[place] != place:
            place = head[place]
        return place

    for place, earlier in enumerate(before):
        for other in earlier:
            if group[place] and group[place] == group[other]:
                head[first(place)] = first(other)
    found = Counter(job.rule for place, job in enumerate(jobs) if not group[place] and job.rule not in here)
    components = Counter(name for place, name in enumerate(group) if name and head[place] == place)
    return found + Counter({f"group {name}": -(-n // of.together.get(str(name), 1)) for name, n in components.items()})


def kind(path: str) -> tuple[str, str]:
    """What a file is of, and what besides tells which others are as large; records have their names."""
    top, *folders, name = Path(path).parts
    end = "".join(Path(name).suffixes)
    if top == "models":
        drafts = folders[0].endswith((drafter_of(""), features_of("")))
        return top, f"{'drafter' if drafts else 'target'} {name}"
    if top == "results":
        records = len(folders) > 2 and folders[0] != "library"
        return ("records", name) if records else ("tables", f"{folders[0]} {end}" if folders else name)
    return top, f"{'/'.join(folders[:1])} {end}"


class Sizes(NamedTuple):
    """Bytes of files: a file of each kind, records by a token; and the tokens of all runs, by which tables grow."""

    of: dict[tuple[str, str], float]
    by_token: dict[tuple[str, str], float]
    tokens: int

    def estimate(self, path: str, tokens: int, every: int) -> float:
        """Of a file of a job that decodes `tokens`, of `every` in the study."""
        what = kind(path)
        if what[0] == "records":
            return self.by_token.get(what, 0.0) * tokens
        return self.of.get(what, 0.0) * (every / self.tokens if what[0] == "tables" else 1)


def sizes(checkout: Path) -> Sizes:
    """What the checkout's dvc.lock says of its run."""
    with readable(str(checkout / "dvc.lock")):
        text = (checkout / "dvc.lock").read_text(encoding="utf-8")
        locked = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))["stages"].values()
        outs = [(out["path"], out["size"]) for stage in locked for out in stage.get("outs", [])]
    decoded = runs(params.read(checkout / "params.yaml"))
    found: dict[tuple[str, str], list[int]] = defaultdict(list)
    tokens: Counter[tuple[str, str]] = Counter()
    for path, size in outs:
        found[kind(path)].append(size)
        tokens[kind(path)] += decoded_by(path, decoded)
    return Sizes(
        {what: mean(found[what]) for what in found},
        {what: sum(found[what]) / number for what, number in tokens.items() if number},
        sum(estimate.tokens(run) for run in decoded.values()),
    )


def runs(known: sections.Params) -> dict[str, grid.Run]:
    """Runs and passes by folder."""
    return {f"results/{folder}": run for folder, run in {**grid.expand(known), **grid.passes(known)}.items()}


def decoded_by(path: str, known: Mapping[str, grid.Run]) -> int:
    """Tokens of the run that a file belongs to, if it is of one."""
    run = known.get(str(Path(path).parent))
    return estimate.tokens(run) if run else 0


def schedule(tasks: Sequence[Task], nodes: int, cores: int) -> float:
    """Seconds until all is done, each node free for what waits longest to the end (list scheduling, Graham 1969).

    A job that is alone takes an idle node, any other a core of one that is not taken.
    """
    after: list[list[int]] = [[] for _ in tasks]
    for place, task in enumerate(tasks):
        for other in task.needs:
            after[other].append(place)
    left = [0.0] * len(tasks)
    for place in reversed(order(tasks)):
        left[place] = tasks[place].seconds + max((left[other] for other in after[place]), default=0.0)
    missing = [len(task.needs) for task in tasks]
    # Those that may start, the most urgent first; apart, so that no small one waits behind one that waits for a node.
    waiting: dict[bool, list[tuple[float, int]]] = {True: [], False: []}
    for place, number in enumerate(missing):
        if not number:
            heapq.heappush(waiting[tasks[place].alone], (-left[place], place))
    free = [cores] * nodes
    running: list[tuple[float, int, int, int]] = []
    now = 0.0
    while True:
        for alone, queue in waiting.items():
            taken = cores if alone else 1
            for node in sorted(range(nodes), key=lambda n: free[n]):
                while queue and free[node] >= taken:
                    _, place = heapq.heappop(queue)
                    free[node] -= taken
                    heapq.heappush(running, (now + tasks[place].seconds, place, node, taken))
        if not running:
            return now
        now, place, node, taken = heapq.heappop(running)
        free[node] += taken
        for other in after[place]:
            missing[other] -= 1
            if not missing[other]:
                heapq.heappush(waiting[tasks[other].alone], (-left[other], other))


def order(tasks: Sequence[Task]) -> list[int]:
    """Places, each behind those that it needs."""
    return list(TopologicalSorter({place: task.needs for place, task in enumerate(tasks)}).static_order())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--root", type=Path, default=Path.cwd(), help="checkout with the study's parameters (default: here)"
    )
    parser.add_argument("--pair", action="append", metavar="NAME", help="of its `pairs` (default: all of them)")
    parser.add_argument("--profile", type=Path, default=Path("profiles/slurm/config.yaml"), metavar="FILE")
    parser.add_argument(
        "--pace", type=Path, default=Path("results/pace.json"), metavar="FILE", help="of a finished run"
    )
    parser.add_argument("--job-seconds", type=float, default=5.0, metavar="S", help="of a job's start (default: 5)")
    parser.add_argument("--nodes", type=options.at_least_one, action="append", metavar="N", help="at once (default: 1)")
    parser.add_argument("--cores", type=options.at_least_one, default=2, metavar="N", help="of a node (default: 2)")
    a = parser.parse_args()
    with reported():
        if not 0 < a.job_seconds < float("inf"):
            raise UserError(f"--job-seconds: {a.job_seconds}; give more than 0")
        known = params.read(a.root / "params.yaml")
        pairs = a.pair or [*known.pairs]
        if unknown := [pair for pair in pairs if pair not in known.pairs]:
            raise UserError(f"--pair: no {unknown[0]!r}; choose of {', '.join(known.pairs)}")
        with readable(f"--pace {a.pace}"):
            pace = estimate.measured(files.read_json(a.pace))
        of, here, large, decoded = profile(a.profile), local(a.root), sizes(Path.cwd()), runs(known)
        every = sum(map(estimate.tokens, decoded.values()))
        tasks: list[Task] = []
        queue: Counter[str] = Counter()
        storage: Counter[str] = Counter()
        for jobs in plans(a.root, known, pairs):
            before, first = needs(jobs), len(tasks)
            queue += submissions(jobs, before, here, of)
            for job, earlier in zip(jobs, before, strict=True):
                run = decoded.get(str(Path(job.outputs[0]).parent))
                took = estimate.seconds(run, known, pace, pace.step, a.job_seconds) if run else a.job_seconds
                tasks.append(Task(job.rule, took, job.rule in of.alone, [first + place for place in earlier]))
                for path in job.outputs:
                    storage[kind(path)[0]] += round(large.estimate(path, decoded_by(path, decoded), every))
        print(describe(len(pairs), tasks, queue, storage))
        for nodes in a.nodes or [1]:
            print(
                f"on {nodes} {'node' if nodes == 1 else 'nodes'}: {schedule(tasks, nodes, a.cores) / 3600:,.1f} hours"
            )


def describe(pairs: int, tasks: Sequence[Task], queue: Counter[str], storage: Counter[str]) -> str:
    """Jobs and hours by rule, submissions, and storage by what it is of."""
    jobs, groups = Counter(task.rule for task in tasks), sorted(name for name in queue if name.startswith("group "))
    rows = [
        (rule, number, sum(task.seconds for task in tasks if task.rule == rule)) for rule, number in jobs.most_common()
    ]
    rows.append(("all", len(tasks), sum(task.seconds for task in tasks)))
    lines = [f"{'rule':<20}{'jobs':>8}{'hours':>10}"]
    lines += [f"{rule:<20}{number:>8,}{took / 3600:>10,.1f}" for rule, number, took in rows]
    of_groups = ", ".join(f"{queue[name]:,} of {name}" for name in groups)
    lines.append(f"submitted for {pairs} pairs: {queue.total():,}, of these {of_groups}")
    of_files = ", ".join(f"{what} {number / GIB:,.2f}" for what, number in sorted(storage.items()))
    return "\n".join([*lines, f"storage in GiB: {of_files}; in all {storage.total() / GIB:,.2f}"])


if __name__ == "__main__":
    main()
