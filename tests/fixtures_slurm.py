"""A real Slurm cluster on loopback: a controller and two nodes, from the machine's packages or unpacked beside them.

Nothing of the machine is changed and nothing needs root: where Slurm is not installed, Debian's packages are fetched
with apt and unpacked into ``.deepseek-ops/tools/slurm``. Every daemon runs as the current user.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from deepseek_ops.adapters.engines.slurm.engine import SlurmEngine
from deepseek_ops.adapters.engines.slurm.settings import SlurmSettings

NODES = ("127.0.0.1", "127.0.0.2")
"""Names of the nodes, which are their addresses: what runs on one is reached from the other by its name."""
NODE_TIMEOUT_SECONDS = 4
_TOOLS = Path(__file__).parent.parent / ".deepseek-ops/tools/slurm"
_PACKAGES = ("slurmd", "slurmctld", "slurm-client", "munge")
_COMMANDS = ("sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo", "sacct")
_DAEMONS = ("slurmctld", "slurmd", "munged")
_CONF = """\
ClusterName=tests
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ctld}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={root}/run/munge.sock
{plugins}StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/slurmd-%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
JobCompType=jobcomp/filetxt
JobCompLoc={root}/log/jobcomp.txt
KillWait=3
MessageTimeout=5
SlurmdTimeout={timeout}
SlurmctldTimeout=5
ReturnToService=2
{nodes}
PartitionName=main Nodes={names} Default=YES MaxTime=INFINITE State=UP
PartitionName=short Nodes={names} MaxTime=1 State=UP
"""


@dataclass(frozen=True)
class SlurmSoftware:
    """Where Slurm's programs are, and the libraries they need."""

    programs: dict[str, Path]
    libraries: tuple[Path, ...] = ()
    plugins: Path | None = None
    stepd: Path | None = None

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which the programs run."""
        path = {"LD_LIBRARY_PATH": ":".join(map(str, self.libraries))} if self.libraries else {}
        return {**{name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}, **path}


def slurm_software() -> SlurmSoftware:
    """Return the machine's Slurm, or the one that is unpacked for the tests. Skips the test without either."""
    search = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    found = {name: shutil.which(name, path=search) for name in (*_COMMANDS, *_DAEMONS)}
    if all(found.values()):
        return SlurmSoftware({name: Path(path) for name, path in found.items() if path})
    _TOOLS.mkdir(parents=True, exist_ok=True)
    with (_TOOLS / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (_TOOLS / "root").is_dir():
            try:
                _unpack(_TOOLS / "root")
            except (subprocess.SubprocessError, OSError) as error:
                pytest.skip(f"Slurm is not installed, and its packages cannot be fetched: {_words(error)}")
    return _unpacked(_TOOLS / "root")


def _unpacked(root: Path) -> SlurmSoftware:
    programs = {}
    for name in (*_COMMANDS, *_DAEMONS):
        choices = [root / "usr" / folder / f"{name}{end}" for folder in ("bin", "sbin") for end in ("", "-wlm")]
        programs[name] = next(path for path in choices if path.is_file())
    (plugins,) = (path.parent for path in root.glob("usr/lib/*/slurm-wlm/select_cons_tres.so"))
    libraries = (plugins.parent, plugins, *root.glob("lib/*-linux-gnu"))
    return SlurmSoftware(programs, libraries, plugins, next(root.glob("usr/sbin/slurmstepd*")))


def _unpack(target: Path) -> None:
    """Fetch Slurm's packages and what of their dependencies the machine lacks, and unpack them into ``target``."""
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        folder = Path(scratch)
        try:
            _fetch(folder, [])
        except subprocess.SubprocessError:  # no package lists, as in most images: read them into a folder of ours
            lists = [f"-oDir::State::Lists={folder}/lists", f"-oDir::Cache={folder}/cache"]
            (folder / "lists/partial").mkdir(parents=True)
            (folder / "cache/archives/partial").mkdir(parents=True)
            _apt(folder, [*lists, "update"])
            _fetch(folder, lists)
        for package in folder.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", package, folder / "root"], check=True, capture_output=True, timeout=60)
        (folder / "root").rename(target)


def _fetch(folder: Path, options: list[str]) -> None:
    """Download what an installation would bring, without installing it."""
    plan = _apt(folder, [*options, "install", "--simulate", "--no-install-recommends", *_PACKAGES])
    names = [line.split()[1] for line in plan.splitlines() if line.startswith("Inst ")]
    _apt(folder, [*options, "download", *names])


def _apt(folder: Path, arguments: list[str]) -> str:
    command = ["apt-get", "-q", "-oAPT::Sandbox::User=", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=240).stdout


def _words(error: Exception) -> str:
    said = getattr(error, "stderr", None)
    return " ".join(str(said or error).split())[-300:]


@dataclass
class SlurmCluster:
    """A running cluster of two nodes."""

    root: Path
    software: SlurmSoftware
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def bin(self) -> Path:
        """Folder with the commands of this cluster, whatever the environment of who runs them."""
        return self.root / "bin"

    @property
    def conf(self) -> Path:
        return self.root / "slurm.conf"

    def engine(self, **changes: object) -> SlurmEngine:
        """Return an engine of its own for this cluster."""
        return SlurmEngine(
            SlurmSettings.load({"bin_folder": str(self.bin), "folder": str(self.root / "out"), **changes})
        )

    def command(self, name: str, *arguments: str, check: bool = True) -> str:
        """Return what one of Slurm's commands printed."""
        done = subprocess.run(
            [self.bin / name, *arguments], check=check, capture_output=True, text=True, timeout=60, cwd=self.root
        )
        return done.stdout

    def start(self) -> None:
        """Start every daemon and wait until both nodes take jobs."""
        run = self.root / "run"
        self._daemon(
            "munged", "--foreground", "--force", f"--socket={run}/munge.sock", f"--key-file={run}/munge.key",
            f"--pid-file={run}/munged.pid", f"--log-file={self.root}/log/munged.log", f"--seed-file={run}/munged.seed",
        )  # fmt: skip
        _until(lambda: (run / "munge.sock").exists(), self)
        self._daemon("slurmctld", "-D")
        for node in NODES:
            self.start_node(node)
        _until(lambda: self.node_states() == ["idle", "idle"], self)

    def start_node(self, node: str) -> None:
        """Start a node's daemon."""
        stepd = ("-d", str(self.software.stepd)) if self.software.stepd else ()
        self._daemon("slurmd", "-D", "-N", node, *stepd, key=node)

    def start_controller(self, *, forget: bool = False) -> None:
        """Start the controller and wait until both nodes take jobs; with ``forget`` it knows of no job."""
        self._daemon("slurmctld", "-D", *(("-c",) if forget else ()))
        _until(lambda: self.node_states() == ["idle", "idle"], self)

    def stop_controller(self) -> None:
        """End the controller at once; nodes and jobs go on."""
        daemon = self.daemons.pop("slurmctld")
        daemon.kill()
        daemon.wait()

    def kill_daemon(self, node: str) -> None:
        """Kill -9 a node's daemon; the processes of its jobs go on, and nobody hears of them."""
        daemon = self.daemons.pop(node)
        daemon.kill()
        daemon.wait()

    def node_states(self) -> list[str]:
        """Return the state of each node."""
        return self.command("sinfo", "--noheader", "--Node", "--format=%T", "--partition=main", check=False).split()

    def kill_node(self, node: str) -> None:
        """End everything on a node at once, as when its power fails."""
        self.kill_daemon(node)
        self._kill(f"TESTS_NODE={node}")
        self._kill(f"SLURMD_NODENAME={node}")

    def stop(self) -> None:
        """End every process of the cluster and of its jobs."""
        self._kill("")
        for daemon in self.daemons.values():
            daemon.wait(5)

    def logs(self) -> str:
        """Return the end of every log."""
        return "\n".join(f"{path.name}:\n{path.read_text()[-1500:]}" for path in sorted(self.root.glob("log/*")))

    def _daemon(self, name: str, *arguments: str, key: str = "") -> None:
        environment = {**self.software.environment, "SLURM_CONF": str(self.conf), "TESTS_NODE": key}
        with (self.root / f"log/{key or name}.out").open("ab") as out:
            self.daemons[key or name] = subprocess.Popen(
                [self.software.programs[name], *arguments],
                env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=self.root,
            )  # fmt: skip

    def _kill(self, mark: str) -> None:
        """Kill -9 the processes of this cluster that have ``mark`` in their environment."""
        ours = f"SLURM_CONF={self.conf}".encode()
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                variables = path.read_bytes().split(b"\0")
                if ours in variables and (not mark or mark.encode() in variables):
                    os.kill(int(path.parent.name), signal.SIGKILL)


def _until(condition, cluster: SlurmCluster, within: float = 60.0) -> None:
    deadline = time.monotonic() + within
    while not condition():
        ended = {name: daemon.poll() for name, daemon in cluster.daemons.items() if daemon.poll() is not None}
        assert not ended, f"{ended} ended:\n{cluster.logs()}"
        assert time.monotonic() < deadline, f"the cluster does not come up: {cluster.node_states()}\n{cluster.logs()}"
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def _configure(root: Path, software: SlurmSoftware) -> None:
    import pwd

    for name in ("run", "log", "state", "out", "bin"):
        (root / name).mkdir(mode=0o700)
    (root / "run/munge.key").write_bytes(secrets.token_bytes(128))
    (root / "run/munge.key").chmod(0o400)
    controller, *ports = _free_ports(1 + len(NODES))
    lines = [
        f"NodeName={node} NodeHostname=localhost NodeAddr={node} Port={port} CPUs=4 RealMemory=1000"
        for node, port in zip(NODES, ports, strict=True)
    ]
    text = _CONF.format(
        root=root, user=pwd.getpwuid(os.getuid()).pw_name, ctld=controller, nodes="\n".join(lines),
        names=",".join(NODES), timeout=NODE_TIMEOUT_SECONDS,
        plugins=f"PluginDir={software.plugins}\n" if software.plugins else "",
    )  # fmt: skip
    (root / "slurm.conf").write_text(text)
    libraries = software.environment.get("LD_LIBRARY_PATH", "")
    own = f"LD_LIBRARY_PATH={libraries}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}} " if libraries else ""
    for name in _COMMANDS:
        wrapper = root / "bin" / name
        wrapper.write_text(f'#!/bin/sh\n{own}SLURM_CONF={root}/slurm.conf exec {software.programs[name]} "$@"\n')
        wrapper.chmod(0o755)


@pytest.fixture(scope="session")
def slurm() -> Iterator[SlurmCluster]:
    """One cluster for all tests of a session."""
    software = slurm_software()
    root = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # a socket's path has 107 bytes at most
    cluster = SlurmCluster(root, software)
    try:
        _configure(root, software)
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(root, ignore_errors=True)
