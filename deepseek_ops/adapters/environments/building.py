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
        self._install(notes)
        self._link_ourselves()
        self._run("checking that our jobs start in it", [str(self.python), "-c", self.runtime.check])
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

    def _install(self, notes: Path) -> None:
        """Install the lock, by its hashes where it has them, and what our jobs import and the lock does not have.

        One resolution sees both, so that nothing of ours replaces what a locked package needs. Packages that the lock
        does not name come in the versions we run with, or, if that cannot be, in the newest.
        """
        files = []
        if self.lock.pins and self.lock.require_hashes:
            hashed = self._written(notes, "hashed.txt", rendered(self.lock.pins, self.lock.options, hashes=True))
            self._pip("installing the lock", "--require-hashes", "--requirement", hashed)
        if self.lock.pins:
            pins = rendered(self.lock.pins, self.lock.options, hashes=False)
            files += ["--requirement", self._written(notes, "lock.txt", pins)]
        if self.runtime.requirements:
            needed = "".join(f"{line}\n" for line in self.runtime.requirements)
            files += ["--requirement", self._written(notes, "runtime.txt", needed)]
        if self.lock.constraints:
            limits = rendered(self.lock.constraints, (), hashes=False)
            files += ["--constraint", self._written(notes, "constraints.txt", limits)]
        if self.lock.pins or self.runtime.requirements:
            self._install_like_ours("installing the lock, and what deepseek-ops needs beside the lock", files, notes)

    def _install_like_ours(self, step: str, files: Sequence[str], notes: Path) -> None:
        named = {pin.name for pin in (*self.lock.pins, *self.lock.constraints)}
        ours = "".join(f"{name}=={version}\n" for name, version in self.runtime.versions if name not in named)
        if ours:
            try:
                self._pip(step, *files, "--constraint", self._written(notes, "ours.txt", ours))
            except EnvironmentBuildError:
                self.commands.say("this does not go with the worker's own versions: resolving what is left open afresh")
            else:
                return
        self._pip(step, *files)

    def _written(self, notes: Path, name: str, text: str) -> str:
        (notes / name).write_text(text)
        return str(notes / name)

    def _pip(self, step: str, *arguments: str) -> None:
        uv = find_uv()
        if uv:
            torch = self.runtime.torch_build
            elsewhere = {"UV_TORCH_BACKEND", "UV_FIND_LINKS", "UV_NO_INDEX", "UV_OFFLINE"} & set(
                self.commands.environment
            )
            backend = ["--torch-backend", torch] if torch and not elsewhere else []
            # uv reads no variable for this, and an index that was not meant may have other packages of the same name.
            alone = (
                ["--no-index"] if self.commands.environment.get("UV_NO_INDEX", "0") not in ("", "0", "false") else []
            )
            command = [uv, "pip", "install", "--python", str(self.python), *backend, *alone, *arguments]
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


def rendered(pins: Sequence[Pin], options: Sequence[str], *, hashes: bool) -> str:
    """Return a requirements file of the pins."""
    lines = list(options)
    for pin in pins:
        given = "".join(f" --hash={one}" for one in pin.hashes) if hashes or (pin.url and pin.hashes) else ""
        lines.append(pin.requirement + given)
    return "".join(f"{line}\n" for line in lines)
