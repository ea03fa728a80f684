"""Jobs on other machines, with all their state in the object store: the launcher of every scale-out engine."""

from deepseek_ops.adapters.remote_launcher.asking import NodeShape
from deepseek_ops.adapters.remote_launcher.errors import RequestRaceError, SubmitRaceError
from deepseek_ops.adapters.remote_launcher.launcher import RemoteLauncher
from deepseek_ops.adapters.remote_launcher.reaping import Reaped, reap

__all__ = ["NodeShape", "Reaped", "RemoteLauncher", "RequestRaceError", "SubmitRaceError", "reap"]
