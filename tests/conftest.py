"""What holds for every test."""

import os

# Two tests run at a time on two cores: the programs that they start would mostly wait for each other's threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
