"""Many runs with one command: as jobs of a SLURM cluster, as processes of this machine, or one after the other.

sweep.py          a sweep and its points, stored in a folder
launcher.py       launches a sweep for Hydra
submit.py         submits points as jobs or runs them here, and waits for them
job.py            runs a point inside a job; handles signals and requeueing
states.py         states of points; detects killed jobs
table.py          table of states and results
mlflow_parent.py  MLflow run of a sweep
commands.py       status, cancel and retry
listing.py        ls
removal.py        rm
"""
