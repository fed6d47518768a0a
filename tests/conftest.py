import os

os.environ["OMP_NUM_THREADS"] = (
    "1"  # tiny tensors: more threads only cost; and runs compare bit for bit across processes
)
