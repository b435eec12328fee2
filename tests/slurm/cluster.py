"""A throw-away Slurm below one folder, on loopback: a controller, two nodes with two fake GPUs
each, its own munge.

Nothing of the system's own Slurm is read or written. Needs Debian's slurmctld, slurmd, slurm-client
and munge, and root (for the fake GPU devices).
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
NODES = ("n1", "n2")
CONF = """\
ClusterName=throwaway
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/munge.sock,cred_expire=5
CredType=cred/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SlurmdParameters=config_overrides
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0,defer
GresTypes=gpu
JobRequeue=1
MinJobAge=3600
MaxArraySize=3
KillWait=5
InactiveLimit=0
SlurmdTimeout=5
SlurmctldTimeout=30
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
AccountingStorageType=accounting_storage/none
EpilogMsgTime=0
CompleteWait=0
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={port1} {node}
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={port2} {node}
PartitionName=main Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF DefMemPerCPU=100
PartitionName=scavenge Nodes=n[1-2] MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=30 \
DefMemPerCPU=100
"""
NODE = "CPUs=2 Boards=1 SocketsPerBoard=1 CoresPerSocket=2 ThreadsPerCore=1 RealMemory=4000 Gres=gpu:fake:2"


def missing() -> str | None:
    """Why there can be no cluster here; None if there can."""
    absent = [name for name in NEEDED if not (shutil.which(name) or Path("/usr/sbin", name).exists())]
    if absent:
        return f"Slurm is not installed ({', '.join(absent)}): apt-get install slurmctld slurmd slurm-client munge"
    return None if os.geteuid() == 0 else "the fake GPU devices of the throw-away Slurm need root"


class Cluster:
    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self.environment["PATH"] += ":/usr/sbin"

    def start(self) -> None:
        for part in ("state", "log", "munge", "dev", *(f"spool/{n}" for n in NODES)):
            (self.folder / part).mkdir(parents=True)
        (self.folder / "munge").chmod(0o711)
        key = self.folder / "munge" / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        for gpu in range(2):
            os.mknod(self.folder / "dev" / f"nvidia{gpu}", 0o666 | 0o020000, os.makedev(1, 3))  # as /dev/null
        (self.folder / "gres.conf").write_text(f"Name=gpu Type=fake File={self.folder}/dev/nvidia[0-1]\n")
        (self.folder / "cgroup.conf").write_text("CgroupAutomount=no\nCgroupPlugin=cgroup/v1\n")
        ports = free_ports(3)
        numbers = dict(zip(("port", "port1", "port2"), ports, strict=True))
        host = socket.gethostname().split(".")[0]
        text = CONF.format(folder=self.folder, host=host, node=NODE, **numbers)
        (self.folder / "slurm.conf").write_text(text)
        munge = self.folder / "munge"
        self.call(
            "munged",
            "--force",
            f"--socket={munge}/munge.sock",
            f"--key-file={key}",
            f"--pid-file={munge}/munged.pid",
            f"--log-file={munge}/munged.log",
            f"--seed-file={munge}/munged.seed",
        )
        self.call("slurmctld", "-c")
        for node in NODES:
            self.start_node(node)
        self.wait(self.idle, "idle nodes")

    def idle(self) -> bool:
        """Whether both nodes wait for work."""
        return self.call("sinfo", "-h", "-N", "-p", "main", "-o", "%t").split() == ["idle"] * 2

    def start_node(self, node: str) -> None:
        self.call("slurmd", "-N", node)

    def kill_node(self, node: str) -> None:
        """The daemon dies as with a broken machine; its jobs go on without it."""
        os.kill(int((self.folder / f"slurmd-{node}.pid").read_text()), signal.SIGKILL)

    def stop(self) -> None:
        """End the jobs, the daemons, and what a killed daemon has left behind."""
        self.call("scancel", "-u", "root", check=False)
        with contextlib.suppress(AssertionError):
            self.wait(lambda: not self.call("squeue", "-h", check=False).strip(), "the end of all jobs", 20)
        self.call("scontrol", "shutdown", check=False)
        for signum in (signal.SIGTERM, signal.SIGKILL):
            for process in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signum)
            with contextlib.suppress(AssertionError):
                self.wait(lambda: not self.processes(), "the end of all daemons", 5)

    def processes(self) -> list[int]:
        """All processes that were started in the cluster's environment, or have a file of it
        open."""
        mark, found = f"SLURM_CONF={self.folder}/slurm.conf".encode(), []
        for place in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                opened = {os.readlink(file) for file in (place / "fd").iterdir()}
                if mark in (place / "environ").read_bytes() or any(o.startswith(f"{self.folder}/") for o in opened):
                    found.append(int(place.name))
        return [process for process in found if process != os.getpid()]

    def call(self, *command: str, check: bool = True, **environment: str) -> str:
        """Run a command in the cluster's environment; its stdout."""
        # daemons keep what they inherit: a pipe would never close
        found = subprocess.run(
            command,
            env=self.environment | environment,
            stdout=subprocess.PIPE if command[0] not in ("munged", "slurmctld", "slurmd") else subprocess.DEVNULL,
            stderr=subprocess.DEVNULL if command[0] in ("munged", "slurmctld", "slurmd") else subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        if check and found.returncode:
            raise AssertionError(f"{command} ended with {found.returncode}: {found.stdout}")
        return found.stdout or ""

    def states(self, job: str) -> dict[str, str]:
        """State of each element of an array (or of a single job) by its index."""
        found = {}
        for line in self.call("scontrol", "show", "job", "-o", job, check=False).splitlines():
            facts = dict(pair.split("=", 1) for pair in line.split() if "=" in pair)
            if "JobState" in facts:
                found[facts.get("ArrayTaskId", "0")] = facts["JobState"]
        return found

    def fact(self, job: str, name: str) -> str:
        """What `scontrol show job` says of one job."""
        return self.call("scontrol", "show", "job", "-o", job).split(f" {name}=")[1].split()[0]

    def wait(self, condition: Callable[[], bool], what: str, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                jobs = self.call("scontrol", "show", "job", check=False)
                raise AssertionError(f"waited {seconds} s for {what}, with these jobs:\n{jobs}")
            time.sleep(0.2)

    def wait_for(self, job: str, seconds: float = 120) -> dict[str, str]:
        """Wait for the end of a job; its elements' states."""
        running = {"PENDING", "RUNNING", "COMPLETING", "REQUEUED", "CONFIGURING", "SUSPENDED", "PREEMPTED", "SIGNALING"}
        self.wait(lambda: not running & set(self.states(job).values()), f"the end of job {job}", seconds)
        return self.states(job)


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
