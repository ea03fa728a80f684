"""How one environment is made in an empty folder: the lock first, then what our jobs need beside it."""

from __future__ import annotations

import shutil
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deepseek_ops.adapters.environments.commands import Commands, find_uv
from deepseek_ops.adapters.environments.errors import CondaUnavailableError, EnvironmentBuildError
from deepseek_ops.adapters.environments.runtime import Runtime
from deepseek_ops.adapters.local_launcher.environment_use import IN_USE
from deepseek_ops.core.environments import EnvironmentLock, Pin

_CONDA = ("micromamba", "mamba", "conda")
_CHECK = "import deepseek_ops.jobs.__main__"


@dataclass(frozen=True)
class Build:
    """One build of one lock. ``folder`` is not there before, and of no use unless ``run`` returns."""

    lock: EnvironmentLock
    runtime: Runtime
    folder: Path
    commands: Commands

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def run(self) -> None:
        """Make the environment. Raises what ``Commands.run`` raises, and CondaUnavailableError."""
        if self.lock.conda:
            self._create_with_conda()
        else:
            self._create()
        notes = self.folder / "deepseek-ops"
        notes.mkdir(mode=0o700)
        self._install_lock(notes)
        self._install_runtime(notes)
        self._link_ourselves()
        self._run("checking that our jobs start in it", [str(self.python), "-c", _CHECK])
        (self.folder / IN_USE).touch(mode=0o600)

    def _create(self) -> None:
        uv, wanted = find_uv(), self.lock.python
        ours = ".".join(map(str, sys.version_info[:2]))
        if uv:
            python = wanted if wanted and wanted != ours else sys.executable
            command = [uv, "venv", "--no-project", "--python", python, str(self.folder)]
        elif wanted and wanted != ours:
            line = f"the lock asks for Python {wanted}, this is {ours}, and only uv can bring another one"
            raise EnvironmentBuildError(self.lock.file, "creating the environment", (line,))
        else:
            command = [sys.executable, "-m", "venv", str(self.folder)]
        self._run("creating the environment", command)

    def _create_with_conda(self) -> None:
        conda = next((found for name in _CONDA if (found := shutil.which(name))), None)
        if conda is None:
            names = ", ".join(self.lock.conda[:3])
            raise CondaUnavailableError("micromamba", "", f"{self.lock.file} (conda packages such as {names})")
        python = self.lock.python or ".".join(map(str, sys.version_info[:2]))
        channels = [word for one in self.lock.channels or ("conda-forge",) for word in ("--channel", one)]
        command = [conda, "create", "--yes", "--quiet", "--prefix", str(self.folder), *channels]
        self._run("creating the conda environment", [*command, f"python={python}", *self.lock.conda, "pip"])

    def _install_lock(self, notes: Path) -> None:
        if not self.lock.pins:
            return
        wanted = notes / "lock.txt"
        wanted.write_text(_rendered(self.lock.pins, self.lock.options, hashes=self.lock.require_hashes))
        pinned = notes / "constraints.txt"
        pinned.write_text(_rendered(self.lock.constraints, (), hashes=False))
        if self.lock.require_hashes:
            self._pip("installing the lock", "--require-hashes", "--requirement", str(wanted))
        else:
            fixed = ["--requirement", str(wanted), "--constraint", str(pinned)]
            self._pip_like_ours("installing the lock", fixed, notes)

    def _install_runtime(self, notes: Path) -> None:
        """Add what our jobs import and the lock does not have, where possible in the versions that we run with."""
        if not self.runtime.requirements:
            return
        needed = notes / "runtime.txt"
        needed.write_text("".join(f"{line}\n" for line in self.runtime.requirements))
        held = notes / "held.txt"
        held.write_text(_rendered([pin for pin in self.lock.pins if pin.version], (), hashes=False))
        fixed = ["--requirement", str(needed), "--constraint", str(held)]
        self._pip_like_ours("installing what deepseek-ops needs beside the lock", fixed, notes)

    def _pip_like_ours(self, step: str, fixed: Sequence[str], notes: Path) -> None:
        """Install; packages the lock does not name come in our versions, or, if that cannot be, in the newest."""
        named = {pin.name for pin in (*self.lock.pins, *self.lock.constraints)}
        ours = notes / "ours.txt"
        ours.write_text("".join(f"{name}=={version}\n" for name, version in self.runtime.versions if name not in named))
        try:
            self._pip(step, *fixed, "--constraint", str(ours))
        except EnvironmentBuildError:
            if not self.runtime.versions:
                raise
            self.commands.say("the lock does not go with this worker's versions: resolving what it leaves open afresh")
            self._pip(step, *fixed)

    def _pip(self, step: str, *arguments: str) -> None:
        uv = find_uv()
        if uv:
            torch = self.runtime.torch_build
            elsewhere = {"UV_TORCH_BACKEND", "UV_FIND_LINKS", "UV_NO_INDEX", "UV_OFFLINE"} & set(
                self.commands.environment
            )
            backend = ["--torch-backend", torch] if torch and not elsewhere else []
            command = [uv, "pip", "install", "--python", str(self.python), *backend, *arguments]
        else:
            command = [str(self.python), "-m", "pip", "install", "--no-input", "--progress-bar=off"]
            command += arguments
        self._run(step, command)

    def _link_ourselves(self) -> None:
        place = Path(sysconfig.get_path("purelib", "venv", {"base": str(self.folder)}))
        if not place.is_dir():  # another Python than ours
            place = next((self.folder / "lib").glob("python3*/site-packages"))
        (place / self.runtime.package.name).symlink_to(self.runtime.package, target_is_directory=True)

    def _run(self, step: str, command: Sequence[str]) -> None:
        self.commands.run(step, command, folder=self.folder.parent)


def _rendered(pins: Sequence[Pin], options: Sequence[str], *, hashes: bool) -> str:
    """Return a requirements file of the pins."""
    lines = list(options)
    for pin in pins:
        given = "".join(f" --hash={one}" for one in pin.hashes) if hashes or (pin.url and pin.hashes) else ""
        lines.append(pin.requirement + given)
    return "".join(f"{line}\n" for line in lines)
