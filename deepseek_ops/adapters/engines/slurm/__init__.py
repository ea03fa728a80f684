"""Slurm as an engine: jobs of ours in a cluster's queue, by the commands every cluster has.

Decisions, and what they cost:

- The commands (``sbatch squeue scancel scontrol sacct``), not ``slurmrestd``: few clusters offer the latter, its API is
  dropped version by version, and a submit takes 20 ms. On a login node they run through ``ssh`` (``settings.via``).
- **A job is resubmitted, never requeued.** ``scontrol requeue`` holds a job for about two minutes; a new attempt has a
  new id and starts as soon as machines are free.
- **One job per id.** Slurm accepts two jobs of one name, so the job itself asks who was first (``script``).
- **A stop has two signals.** Slurm's own grace (``KillWait``) is the cluster's and not the job's, so the batch script
  measures ours. It is told by SIGUSR1, because ``srun`` answers a SIGTERM of its own by killing its tasks at once.
- Variables travel over standard input into Slurm's own environment file: see ``submitting``.
"""
