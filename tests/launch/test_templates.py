"""The files that other programs read: JobSet, SkyPilot task, Dockerfile."""

import re
import shlex

import pytest
import yaml

from tests import paths

LAUNCH = paths.ROOT / "launch"

# The fields that we use, as the APIs jobset.x-k8s.io/v1alpha2, batch/v1 and v1 name and type them.
# A dict lists the fields that may stand there, a one-element list gives the type of its items.
CONTAINER = {
    "name": str,
    "image": str,
    "workingDir": str,
    "command": [str],
    "resources": {"requests": {"google.com/tpu": int}, "limits": {"google.com/tpu": int}},
    "volumeMounts": [{"name": str, "mountPath": str}],
}
POD = {
    "metadata": {"annotations": {"gke-gcsfuse/volumes": str}},
    "spec": {
        "restartPolicy": str,
        "terminationGracePeriodSeconds": int,
        "serviceAccountName": str,
        "securityContext": {"fsGroup": int},
        "nodeSelector": {
            "cloud.google.com/gke-tpu-accelerator": str,
            "cloud.google.com/gke-tpu-topology": str,
            "cloud.google.com/gke-spot": str,
        },
        "containers": [CONTAINER],
        "volumes": [
            {
                "name": str,
                "csi": {
                    "driver": str,
                    "volumeAttributes": {"bucketName": str, "mountOptions": str},
                },
            }
        ],
    },
}
POD_RULE = {
    "action": str,
    "onPodConditions": [{"type": str, "status": str}],
    "onExitCodes": {"containerName": str, "operator": str, "values": [int]},
}
JOB = {
    "parallelism": int,
    "completions": int,
    "completionMode": str,
    "backoffLimit": int,
    "activeDeadlineSeconds": int,
    "podFailurePolicy": {"rules": [POD_RULE]},
    "template": POD,
}
JOBSET = {
    "apiVersion": str,
    "kind": str,
    "metadata": {"name": str},
    "spec": {
        "ttlSecondsAfterFinished": int,
        "failurePolicy": {
            "maxRestarts": int,
            "rules": [{"name": str, "action": str, "onJobFailureReasons": [str]}],
        },
        "replicatedJobs": [{"name": str, "replicas": int, "template": {"spec": JOB}}],
    },
}


def _fit(value, schema, where="it"):
    if isinstance(schema, dict):
        assert isinstance(value, dict) and set(value) <= set(schema), where
        for key, item in value.items():
            _fit(item, schema[key], f"{where}.{key}")
    elif isinstance(schema, list):
        assert isinstance(value, list) and value, where
        for item in value:
            _fit(item, schema[0], f"{where}[]")
    else:
        assert type(value) is schema, f"{where}: {value!r}"


def _jobset(place, *words):
    base = ["--name=run", "--type=v5e-16", "--image=i:1", "--bucket=1234", "--workdir=bucket/r"]
    done = place.run("gke.sh", *base, *words, "--print", "--", "--config=c.py", "--config.x=y: [z")
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


def test_jobset_has_the_fields_of_its_api(place):
    jobset = _jobset(place, "--spot", "--account=1e3")
    _fit(jobset, JOBSET)
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    with pytest.raises(AssertionError, match="maxRestart"):
        _fit({"spec": {"failurePolicy": {"maxRestart": 1}}}, JOBSET)


def test_jobset_starts_again_after_75_and_lost_nodes_only(place):
    spec = _jobset(place, "--retries=4", "--max-hours=2")["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    lost, other = job["podFailurePolicy"]["rules"]
    # first rule wins: a lost node counts, and with backoffLimit 0 the job fails for that reason
    assert lost == {
        "action": "Count",
        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
    }
    codes = {"containerName": "train", "operator": "NotIn", "values": [75]}
    assert other == {"action": "FailJob", "onExitCodes": codes}
    assert job["backoffLimit"] == 0
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # a pod failure policy asks for it
    assert spec["failurePolicy"]["maxRestarts"] == 4
    (rule,) = spec["failurePolicy"]["rules"]
    assert rule["action"] == "FailJobSet"
    assert "PodFailurePolicy" in rule["onJobFailureReasons"]
    assert "BackoffLimitExceeded" not in rule["onJobFailureReasons"]
    assert job["activeDeadlineSeconds"] == 7200


@pytest.mark.parametrize(
    ("kind", "accelerator", "topology", "hosts", "chips"),
    [
        ("v5e-8", "tpu-v5-lite-podslice", "2x4", 1, 8),
        ("v5e-16", "tpu-v5-lite-podslice", "4x4", 4, 4),
        ("v4-8", "tpu-v4-podslice", "2x2x1", 1, 4),
        ("v4-16", "tpu-v4-podslice", "2x2x2", 2, 4),
    ],
)
def test_jobset_of_a_slice(place, kind, accelerator, topology, hosts, chips):
    job = _jobset(place, f"--type={kind}")["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["parallelism"] == job["completions"] == hosts
    pod = job["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"] == accelerator
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == topology
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": chips}
    sides = [int(side) for side in topology.split("x")]
    num_chips = 1
    for side in sides:
        num_chips *= side
    assert num_chips == hosts * chips


def test_sky_task():
    task = yaml.safe_load((LAUNCH / "sky.yaml").read_text())
    assert set(task) == {"name", "envs", "resources", "workdir", "file_mounts", "setup", "run"}
    resources = {"accelerators", "use_spot", "job_recovery"}
    assert set(task["resources"]) == resources
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]
    assert task["resources"]["job_recovery"]["max_restarts_on_errors"] == 0
    (mount,) = task["file_mounts"].values()
    assert mount == {"source": "gs://${SGQLM_BUCKET}", "mode": "MOUNT"}


def _dockerfile():
    """Return stage -> its instructions as (name, words)."""
    text = (paths.ROOT / "Dockerfile").read_text()
    lines = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    stages, base = {}, {}
    for line in filter(None, lines):
        name, _, rest = line.partition(" ")
        if name == "FROM":
            image, _, stage = rest.split()
            stages[stage], base[stage] = [], image
        else:
            stages[stage].append((name, shlex.split(rest)))
    return stages, base


def test_docker_targets():
    stages, base = _dockerfile()
    assert set(stages) == {"base", "cpu", "cuda", "tpu"}
    assert re.fullmatch(r"python:3\.\d+-slim-\w+", base["base"])
    known = {"COPY", "RUN", "ENV", "WORKDIR", "USER", "CMD"}
    for target in ("cpu", "cuda", "tpu"):
        assert base[target] == "base"
        names = [name for name, _ in stages[target]]
        assert set(names) <= known
        assert ("USER", ["sgqlm"]) in stages[target]
        assert names.index("USER") > names.index("RUN")
        install = next(words for name, words in stages[target] if name == "RUN")
        constraints = install[install.index("--constraint") + 1]
        assert constraints == f"constraints/{target}.txt"
        assert (paths.ROOT / constraints).is_file()
        assert install[-1] == ("." if target == "cpu" else f".[{target}]")


def test_what_docker_copies_is_there():
    stages, _ = _dockerfile()
    ignored = (paths.ROOT / ".dockerignore").read_text().split()
    copied = []
    for instructions in stages.values():
        for name, words in instructions:
            if name == "COPY":
                copied += [word for word in words[:-1] if not word.startswith("--")]
    assert "setup.py" in copied and "." in copied
    for name in copied:
        assert (paths.ROOT / name).exists(), name
        assert name not in ignored
    # what a run in an image needs, and what must not get into one
    assert not {"configs", "launch", "sgqlm", "constraints", "README.md"} & set(ignored)
    assert {".git", ".venv*", "runs"} <= set(ignored)


def test_no_package_index_is_named():
    for file in [paths.ROOT / "Dockerfile", *LAUNCH.iterdir()]:
        assert not re.search(r"index-url|pypi\.org|find-links", file.read_text()), file
