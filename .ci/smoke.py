"""The main job in brief, with the installed package: ``python smoke.py`` in an empty folder.

Uses the ``recbole-prune`` beside the running Python and checks what it prints, what it writes and how it exits.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import recbole_prune

RUN = ["--model=BPR", "--dataset=ml-100k", "--pruner=imp", "--prune_rate=0.1", "--prune_rounds=2", "--epochs=3"]
# 64 values for each of 943 users and 1682 items, less floor(0.1 * live) per round
KEPT = [168000, 151200, 136080]


def recbole_prune_command(*arguments: str, status: int = 0) -> str:
    """Run the console script and return what it printed; stop with its output if it exits otherwise than expected."""
    script = Path(sys.executable).with_name("recbole-prune")
    start = time.perf_counter()
    done = subprocess.run(
        [str(script), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    command = " ".join(["recbole-prune", *arguments])
    if done.returncode != status:
        sys.exit(f"{done.stdout}\n{command}: exit status {done.returncode}, expected {status}")
    print(f"  {time.perf_counter() - start:5.1f} s  {command}")
    return done.stdout


def check(holds: bool, what: str, printed: str) -> None:
    """Stop with what a command printed unless a condition holds."""
    if not holds:
        sys.exit(f"{printed}\nsmoke.py: {what}")


def main() -> None:
    """Doctor, a run, the same run again, recommendations from its artifact, a misspelt key."""
    check(not list(Path().iterdir()), "start it in an empty folder", str(Path.cwd()))
    package = Path(recbole_prune.__file__).resolve().parent
    check(Path(sys.prefix).resolve() in package.parents, "not the installed package", str(package))

    printed = recbole_prune_command("doctor")
    check(f"recbole_prune {recbole_prune.__version__}" in printed, "doctor does not say the version", printed)

    printed = recbole_prune_command(*RUN)
    journals = list(Path("pruned", "ml-100k", "BPR").glob("imp-*/tickets.jsonl"))
    check(len(journals) == 1, f"expected one run folder, found {journals}", printed)
    lines = journals[0].read_text(encoding="utf-8")
    kept = [json.loads(line)["kept"] for line in lines.splitlines()]
    check(kept == KEPT, f"kept counts {kept}, expected {KEPT}", printed)
    check(f"{KEPT[-1]:,}" in printed, "the table is missing", printed)

    again = recbole_prune_command(*RUN)
    check(journals[0].read_text(encoding="utf-8") == lines, "the same command changed the finished run", again)
    check(f"{KEPT[-1]:,}" in again, "a finished run does not print its table", again)

    artifact = journals[0].parent / "artifact"
    printed = recbole_prune_command("recommend", f"--artifact={artifact}", "--users=196,186", "--k=5")
    rows = [line.split()[:2] for line in printed.splitlines()[1:]]
    expected = [[user, str(rank)] for user in ("196", "186") for rank in range(1, 6)]
    check(rows == expected, f"rows {rows}, expected {expected}", printed)

    printed = recbole_prune_command("--model=BPR", "--dataset=ml-100k", "--prunner=imp", status=2)
    check("--pruner" in printed, "a misspelt key gets no suggestion", printed)


if __name__ == "__main__":
    main()
