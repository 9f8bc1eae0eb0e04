"""`sgqlm eval report` and `sgqlm eval compare`: pages of answers that were scored."""

import argparse
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from sgqlm import errors
from sgqlm.cli import common
from sgqlm.evals import comparing, comparison, graph_views, measured, pictures, report, summary
from sgqlm.train import progress
from sgqlm.viz import eval_report, pages

_ABOUT = (
    "Put reports of `sgqlm eval score --out` beside published scores: intervals, charts and wrong "
    "answers, as HTML, markdown and json."
)
_COMPARE = (
    "Compare two models on the same questions, from reports of `sgqlm eval score --out`: paired "
    "differences with intervals, a test, and the questions that changed."
)
_MOST_WRONG = 1000
_UNKNOWN = "not known"
_Items = Mapping[str, measured.Item]
_SIDES = ("given", "second_given"), ("score", "second_score")


def run(argv: list[str]) -> int:
    """Run `sgqlm eval report`; return the exit code."""
    parser = common.Parser(prog="sgqlm eval report", description=_ABOUT)
    parser.add_argument("reports", nargs="+", type=pathlib.Path, help="reports, or their folder")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of the pages")
    parser.add_argument("--wrong", type=int, default=40, help="wrong answers of a report (40)")
    _add_pictures(parser)
    parser.add_argument(
        "--checkpoint", action="append", default=[], metavar="RUN",
        help="the model that answered: its scene graphs of the wrong answers are drawn; once for "
        "each model of the page",
    )  # fmt: skip
    parser.add_argument("--base", help="where the base weights lie, if they were moved")
    parser.add_argument("--graphs", type=int, help="graphs of a report (all shown)")
    args, rest = parser.parse_known_args(argv)
    flags = [flag for action in parser._actions for flag in action.option_strings]
    common.refuse_rest(rest, flags)
    _check(args)
    viewer = graph_views.Viewer(args.checkpoint, base=args.base) if args.checkpoint else None
    reports, other, left = measured.find(args.reports)
    if other:
        told = ", ".join(other[:3]) + (", ..." if len(other) > 3 else "")
        print(f"{len(other)} json files are no reports of answers: {told}", file=sys.stderr)
    for line in left:
        print(f"left out: {line}", file=sys.stderr)
    for one in reports:
        if measured.BARE in one.notes:
            print(f"{one.task}, {one.name}: {measured.BARE}", file=sys.stderr)
    known = [one.details for one in reports]
    drawer = _drawer(args, known)
    found = summary.build(reports, wrong=args.wrong)
    seen = _seen(found, reports, drawer, viewer, args.graphs)
    body = _report_body(found, known, drawer, seen)
    _tell_missed(drawer)
    document = eval_report.page("Evaluation", body)
    written = _write(args.out, "evaluation", found, document, summary.markdown(found))
    header, rows, listed = summary.cells(found["table"])
    print("\n".join([*_lines(header, rows), *listed, *_asked_otherwise(found), *written]))
    return errors.OK


def _asked_otherwise(found: Mapping[str, Any]) -> list[str]:
    return [note for group in found["together"] for note in group["notes"]]


def _seen(
    found: Mapping[str, Any],
    reports: Sequence[measured.Report],
    drawer: pictures.Pictures,
    viewer: graph_views.Viewer | None,
    most: int | None,
) -> list[Mapping[str, graph_views.View]]:
    """Return the views of the wrong answers of each report, and put them into the json values."""
    out = []
    for part, one in zip(found["reports"], reports, strict=True):
        shown = [wrong for wrong in part["wrong"]["shown"] if wrong["id"] in one.details]
        shown = shown[:most] if viewer else []
        asked = {wrong["id"]: one.details[wrong["id"]] for wrong in shown}
        if viewer is None or not asked:
            out.append({})
            continue
        with progress.Progress(f"graphs of {part['task']}, {part['name']}", len(asked)) as bar:
            views, reasons = viewer.views(one, asked, drawer, bar.update)
        part["notes"] += reasons
        print("".join(f"{part['task']}, {part['name']}: {why}\n" for why in reasons), end="",
              file=sys.stderr)  # fmt: skip
        for wrong in shown:
            wrong |= {"graph": views[wrong["id"]].told()} if wrong["id"] in views else {}
        out.append(views)
    return out


def compare(argv: list[str]) -> int:
    """Run `sgqlm eval compare`; return the exit code."""
    parser = common.Parser(prog="sgqlm eval compare", description=_COMPARE)
    parser.add_argument("first", type=pathlib.Path, help="a report, or a folder of them")
    parser.add_argument("second", type=pathlib.Path, help="that of the other model")
    parser.add_argument("--out", type=pathlib.Path, help="folder of the pages")
    parser.add_argument("--wrong", type=int, default=40, help="changes shown each way (40)")
    _add_pictures(parser)
    args, rest = parser.parse_known_args(argv)
    common.refuse_rest(rest, ("--out", "--wrong", "--images", "--entities"))
    _check(args)
    pairs, notes = _pairs(args.first, args.second)
    pairs = comparison.named(pairs)
    known = [first.details or second.details for first, second in pairs]
    drawer = _drawer(args, known)
    done = comparing.adjusted(comparing.compare(*pair) for pair in pairs)
    found = comparison.compared(done, notes)
    told = [*_lines(*comparison.cells(found)), *comparison.notes(found)]
    told += comparison.caveats(found)
    if args.out:
        body = _compared_body(found, known, drawer, args)
        document = eval_report.page("Comparison", body)
        text = comparison.markdown(found, most=args.wrong)
        _tell_missed(drawer)
        told += _write(args.out, "comparison", found, document, text)
    print("\n".join(told))
    return errors.OK


def _add_pictures(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--images", type=pathlib.Path,
        help="folder of the benchmark's images; of several benchmarks the root of them all",
    )  # fmt: skip
    parser.add_argument(
        "--entities", type=pathlib.Path,
        help="entity store, drawn on --images; of several benchmarks a folder of stores that are "
        "called as the tasks",
    )  # fmt: skip


def _drawer(args: argparse.Namespace, known: Sequence[_Items]) -> pictures.Pictures:
    has_pixels = any(item.pixels for items in known for item in items.values())
    if args.entities and not args.images and not has_pixels:
        fix = "name their folder with --images"
        raise errors.SgqlmError("entities are drawn on images", where="--entities", fix=fix)
    return pictures.Pictures(args.images, args.entities)


def _tell_missed(drawer: pictures.Pictures) -> None:
    for line in drawer.missed_lines():
        print(line, file=sys.stderr)


def _check(args: argparse.Namespace) -> None:
    if not 0 <= args.wrong <= _MOST_WRONG:
        fix = f"give a number from 0 to {_MOST_WRONG}"
        raise errors.SgqlmError(f"{args.wrong} is out of range", where="--wrong", fix=fix)
    for flag in ("graphs", "base"):
        if getattr(args, flag, None) is not None and not args.checkpoint:
            fix = "name the model that answered with --checkpoint"
            raise errors.SgqlmError(f"--{flag} needs a model", where=f"--{flag}", fix=fix)
    if (getattr(args, "graphs", None) or 0) < 0:
        raise errors.SgqlmError("--graphs is below 0", where="--graphs", fix="leave it out for all")
    if getattr(args, "checkpoint", ()) and not args.entities:
        fix = "name the store of the evaluation with --entities, and the pictures with --images"
        raise errors.SgqlmError("a graph is of entities", where="--checkpoint", fix=fix)
    if args.out:
        common.check_folder(args.out)
    for path in [
        *getattr(args, "reports", ()),
        *(getattr(args, n, None) for n in ("first", "second")),
    ]:
        if path is not None and not path.exists():
            raise errors.SgqlmError(
                "there is no such report", where=str(path), fix="correct the path"
            )


def _pairs(first: pathlib.Path, second: pathlib.Path):
    """Return the reports of the same task in both, and what is left out."""
    sides = []
    for path in (first, second):
        by_task = {}
        for one in measured.find([path])[0]:
            if one.task in by_task:
                raise errors.SgqlmError(
                    f"there are several reports of {one.task}",
                    where=f"{by_task[one.task].path}, {one.path}",
                    fix="name one of them",
                )
            by_task[one.task] = one
        sides.append(by_task)
    tasks = [task for task in sides[0] if task in sides[1]]
    notes = [
        f"{', '.join(left)} only in the {which}: left out"
        for which, (a, b) in (("first", sides), ("second", sides[::-1]))
        if (left := [task for task in a if task not in b])
    ]
    if not tasks:
        why = f"{', '.join(sides[0])} and {', '.join(sides[1])}"
        raise errors.SgqlmError(
            "the two have no task in common", where=f"{first}, {second}", why=why,
            fix="give reports of the same benchmark", code=errors.DATA,
        )  # fmt: skip
    return [(sides[0][task], sides[1][task]) for task in tasks], notes


def _report_body(
    found: Mapping[str, Any],
    known: Sequence,
    drawer: pictures.Pictures,
    seen: Sequence[Mapping[str, graph_views.View]],
) -> list[str]:
    header, rows, notes = summary.cells(found["table"])
    notes = notes + found["table"]["notes"]
    notes += [f"{name}: {why}" for name, why in found["table"]["absent"].items()]
    titles = [f"{part['task']}: {part['name']}" for part in found["reports"]]
    ours = len(found["table"]["measured"])
    body = [eval_report.links(titles), eval_report.scores(header, rows, notes, ours=ours)]
    for part in found["together"]:
        body.append(pages.heading(f"{part['task']}: {len(part['names'])} models"))
        body.append(eval_report.key(part["names"]) + eval_report.listed(part["notes"]))
        body.append(pages.grid(eval_report.charts(part["families"], part["unit"])))
    for at, (part, items) in enumerate(zip(found["reports"], known, strict=True)):
        charts = eval_report.charts(part["families"], part["unit"])
        lines = [summary.headline(part), *summary.facts(part)]
        body.append(eval_report.section(at, titles[at], lines, charts))
        wrong = part["wrong"]
        cards = [
            eval_report.item(
                one,
                _picture(drawer, items, one, part["task"]),
                [("given", one.get("given", _UNKNOWN), summary.graded(part, one["score"]))],
                graph=_graph(seen[at].get(one["id"])),
            )
            for one in wrong["shown"]
            if "question" in one
        ]
        kinds = sorted({kind for one in wrong["shown"] for kind in one.get("kinds", ())})
        body.append(eval_report.browser(summary.wrong_title(part), cards, kinds))
    return body


def _compared_body(
    found: Mapping[str, Any], known: Sequence, drawer: pictures.Pictures, args: argparse.Namespace
) -> list[str]:
    body = [eval_report.scores(*comparison.cells(found), comparison.notes(found))]
    for at, (part, items) in enumerate(zip(found["tasks"], known, strict=True)):
        names = [part[which]["name"] for which in ("first", "second")]
        lines = [comparison.headline(part), *part["notes"]]
        body.append(eval_report.section(at, part["task"], lines, ()))
        for way in ("better", "worse"):
            shown = part["changed"][way][: args.wrong]
            cards = [
                eval_report.item(
                    one,
                    _picture(drawer, items, one, part["task"]),
                    [
                        (name, one.get(said, _UNKNOWN), summary.graded(part, one[score]))
                        for name, said, score in zip(names, *_SIDES, strict=True)
                    ],
                )
                for one in shown
            ]
            kinds = sorted({kind for one in shown for kind in one.get("kinds", ())})
            title = f"{summary.counted(part[way], 'question')} {way} in {names[1]}"
            title += f"; {len(cards)} of them" if cards else ""
            body.append(eval_report.browser(title, cards, kinds))
    return body


def _picture(
    drawer: pictures.Pictures, items: _Items, one: Mapping[str, Any], task: str
) -> eval_report.Picture:
    known = items.get(one["id"])
    return drawer.draw(known, task) if known and "graph" not in one else (None, "")


def _graph(view: graph_views.View | None) -> str:
    if view is None:
        return ""
    graph = view.graph
    return eval_report.graph(
        view.image,
        graph.entities,
        node_attention=graph.node_attention,
        edges=graph.edges,
        words=graph.words,
        word_attention=graph.word_attention,
        caption=view.words,
    )


def _lines(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    table = [header, *rows]
    widths = [max(len(row[at]) for row in table) for at in range(len(header))]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]


def _write(folder: pathlib.Path, stem: str, found: Mapping, document: str, text: str) -> list[str]:
    """Write all pages, before a line is printed: who reads the lines may leave."""
    written = [report.write(folder / f"{stem}.json", found)]
    written.append(pages.write(folder / f"{stem}.md", text))
    written.append(pages.write(folder / f"{stem}.html", document))
    return list(map(str, written))
