"""Many runs with one command: as jobs of a SLURM cluster, as processes of this machine, or one after the other.

folder.py   what a sweep is: its points, kept in a folder
launch.py   submits points, waits for them, and puts what came out into a table
job.py      what runs inside a job, and how a job leaves
states.py   how far each point is, and how a job that died is found out
slurm.py    what SLURM says
"""
