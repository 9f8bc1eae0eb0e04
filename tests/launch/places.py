"""A copy of launch/ beside programs that record how they are called, and answer as a test says."""

import json
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence

from tests import paths

# what the scripts may use; anything else on the PATH of this machine is out of reach
TOOLS = "awk bash cat chmod date dirname env grep head ln mkdir ps rm sed sleep tail tee tr wc"
FAKES = "curl gcloud git kubectl nvidia-smi sbatch scancel scontrol sgqlm sky srun"

# An answer is [part of the arguments, exit code, output, what else]; the last one that fits stays.
FAKE = """#!{python} -SE
import json, os, sys
place, name, words = {place!r} + "/", os.path.basename(sys.argv[0]), sys.argv[1:]
keep = ("JAX_", "XLA_", "SLURM_")
call = dict(name=name, words=words, cwd=os.getcwd(),
            env={{k: v for k, v in os.environ.items() if k.startswith(keep)}},
            stdin=sys.stdin.read() if name == "kubectl" else "")
with open(place + "calls.jsonl", "a") as file:
    file.write(json.dumps(call) + "\\n")
with open(place + "answers.json") as file:
    answers = json.load(file)
fitting = [a for a in answers.get(name, []) if a[0] in " ".join(words)]
answer = fitting[0] if fitting else ["", 0, "", ""]
if len(fitting) > 1:
    answers[name].remove(answer)
    with open(place + "answers.json", "w") as file:
        json.dump(answers, file)
_, code, output, extra = answer
print(output, end="", flush=True)
if extra == "until TERM":  # a run that is stopped, and saves
    import signal, time
    def save(number, frame):
        print("saved", flush=True)
        sys.exit(code)
    signal.signal(signal.SIGTERM, save)
    open(place + "running", "w").close()
    time.sleep(20)
    sys.exit(99)
if extra == "run":  # srun and ssh: the rest of the arguments is a command
    import subprocess
    command = [w[10:] for w in words if w.startswith("--command=")]
    command = ["bash", "-c", command[0]] if command else words[1:]
    child = subprocess.Popen(command, cwd=place + "home" if name == "gcloud" else None)
    with open(place + name + ".pid", "w") as file:
        file.write(str(child.pid))
    sys.exit(child.wait())
if name == "scancel":
    with open(place + "srun.pid") as file:
        os.kill(int(file.read()), 15)
sys.exit(code)
"""


class Place:
    """A folder with the launchers, the recording programs and what they are to answer."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.repo = folder, folder / "the repo"
        shutil.copytree(paths.ROOT / "launch", self.repo / "launch")
        (folder / "home" / "sgqlm").mkdir(parents=True)
        (folder / "home" / "sgqlm" / "launch").symlink_to(self.repo / "launch")
        self._bin = folder / "bin"
        self._bin.mkdir()
        for tool in TOOLS.split():
            (self._bin / tool).symlink_to(shutil.which(tool))
        for name in FAKES.split():
            self.add(name, FAKE.format(python=sys.executable, place=str(folder)))
        self.answer()

    def add(self, name: str, text: str):
        """Put a program on the PATH."""
        (self._bin / name).write_text(text)
        (self._bin / name).chmod(0o755)

    def remove(self, name: str):
        """Take a program off the PATH."""
        (self._bin / name).unlink()

    def answer(self, **answers: Sequence):
        """Say what programs answer: name -> [(part of the arguments, code, output, extra)]."""
        filled = {
            name.replace("_", "-"): [[*a, *["", 0, "", ""][len(a) :]] for a in found]
            for name, found in answers.items()
        }
        (self.folder / "answers.json").write_text(json.dumps(filled))

    def environment(self, **settings: str) -> dict[str, str]:
        return {
            "PATH": str(self._bin),
            "HOME": str(self.folder / "home"),
            "PYTHON": sys.executable,
            "SGQLM_POLL_SECONDS": "0.05",
            **settings,
        }

    def run(self, script: str, *words: str, **settings: str) -> subprocess.CompletedProcess:
        """Run a launcher to its end."""
        return subprocess.run(
            [self.repo / "launch" / script, *words],
            cwd=self.folder,
            env=self.environment(**settings),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def start(self, script: str, *words: str, **settings: str) -> subprocess.Popen:
        """Start a launcher, and return when its run has begun."""
        process = subprocess.Popen(
            [self.repo / "launch" / script, *words],
            cwd=self.folder,
            env=self.environment(**settings),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        until = time.monotonic() + 15
        while not (self.folder / "running").exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until, "the run did not begin"
            time.sleep(0.02)
        return process

    def calls(self, *names: str) -> list[dict]:
        """Return what was called, all or only these programs."""
        file = self.folder / "calls.jsonl"
        found = map(json.loads, file.read_text().splitlines() if file.exists() else [])
        return [call for call in found if not names or call["name"] in names]

    def trained(self) -> list[list[str]]:
        """Return the words of every `sgqlm train`."""
        return [call["words"] for call in self.calls("sgqlm")]
