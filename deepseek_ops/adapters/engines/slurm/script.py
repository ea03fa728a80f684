"""The batch script: asks who was first, runs the command on every node, and measures the grace of a stop.

It runs on the first node. Everything of ours in it is quoted by ``shlex``; nothing in it is secret.

Slurm accepts any number of jobs of one name. It gives their ids in the order in which it accepted them, so the lowest
id is the one job, and whoever sees a lower id than its own steps aside. The script decides that, not the process that
submitted: that one may die between two commands, while no command of ours runs before the script has looked. A script
that cannot look does not run the command: its attempt is lost and made again.

``srun`` ends with the highest status of its tasks, which is 137 where one of them fails and it kills the others. The
first one that failed is the story; ``srun`` names it in the script's output, where lines of tasks begin with a label.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from deepseek_ops.core.jobs import EXIT_RETRY

STOP_SIGNAL = "USR1"
MARK = "deepseek-ops job="
"""Begins the comment of our jobs; the id follows, and `` stop=<seconds>`` once somebody wants the job to end."""
SECOND_JOB = "another job of this name was first"
_SCRIPT = """\
export PATH={path}"${{PATH:-/usr/local/bin:/usr/bin:/bin}}" USER="${{USER:-$SLURM_JOB_USER}}"
export LOGNAME="$USER" HOME="${{HOME:-$(getent passwd "$SLURM_JOB_UID" | cut -d: -f6)}}"
step= killer=
stopping() {{
  trap '' {signal}
  grace=$(scontrol -o show job "$SLURM_JOB_ID" | sed -n 's/.* stop=\\([0-9.]*\\).*/\\1/p')
  [ -n "$step" ] || exit {retry}
  scancel --signal=TERM "$SLURM_JOB_ID.0"
  (sleep "${{grace:-{grace}}}"; scancel --signal=KILL "$SLURM_JOB_ID.0") & killer=$!
}}
trap stopping {signal}
first= tries=0
until [ -n "$first" ] || [ "$tries" -eq 10 ]; do
  [ "$tries" -eq 0 ] || sleep 2
  tries=$((tries + 1))
  first=$(squeue --noheader --me --states=all --name={name} --Format=JobID:20 | sort -n | tr -d ' ' | head -n 1)
done
if [ "$first" != "$SLURM_JOB_ID" ]; then
  echo "job $SLURM_JOB_ID ends: {second} (${{first:-the controller does not answer}})"
  exit {retry}
fi
{srun} </dev/null & step=$!
while wait "$step"; status=$?; [ "$status" -gt 128 ] && kill -0 "$step" 2>/dev/null; do :; done
if [ -n "$killer" ]; then
  kill "$killer" 2>/dev/null
  scancel "$SLURM_JOB_ID"
  sleep 5
fi
if [ "$status" -gt 128 ]; then
  failed=$(sed -n 's/^srun: error: .* task.*: Exited with exit code \\([0-9]*\\)$/\\1/p' {output} | head -n 1)
  status=${{failed:-$status}}
fi
exit "$status"
"""


def batch_script(
    command: Sequence[str],
    *,
    name: str,
    output: str,
    grace_seconds: float,
    srun_options: Sequence[str],
    bin_folder: str = "",
) -> str:
    """Return the script (POSIX sh) that runs ``command`` once on each node of the job called ``name``.

    Args:
        command: Argument list; arrives as it is.
        name: The Slurm name of the job.
        output: File of the script's own output.
        grace_seconds: Between SIGTERM and SIGKILL where a stop names none.
        srun_options: Options of the step.
        bin_folder: Where Slurm's commands are on the nodes; empty = on the PATH.
    """
    srun = ("srun", "--export=ALL", "--kill-on-bad-exit=1", "--unbuffered", *srun_options, "--", *command)
    return _SCRIPT.format(
        path=f"{shlex.quote(bin_folder)}:" if bin_folder else "",
        signal=STOP_SIGNAL,
        retry=EXIT_RETRY,
        grace=f"{grace_seconds:g}",
        name=shlex.quote(name),
        output=shlex.quote(output),
        second=SECOND_JOB,
        srun=shlex.join(srun),
    )
