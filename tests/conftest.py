"""What holds for every test."""

import os

# Two tests run at a time on two cores: the programs that they start would wait for each other's threads most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
