import os
import subprocess
import sys

import pytest

COUNT = """
import os, torch
from nmoe_flower.inference.serve.served import expert_thread
from nmoe_flower.models import Expert
torch.set_num_threads(1)
expert = Expert(64, 10)

def threads_after_a_pass():
    with torch.inference_mode():
        expert(torch.zeros(1, 64))
    return len(os.listdir("/proc/self/task"))

before = threads_after_a_pass()
print(expert_thread().submit(threads_after_a_pass).result() - before)
"""


@pytest.mark.skipif(
    sys.platform != "linux" or os.cpu_count() == 1, reason="counts threads of several cores"
)
def test_the_experts_thread_starts_no_others() -> None:
    """MKL would start one per core for it, which spin, whatever torch was told elsewhere."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    command = [sys.executable, "-c", COUNT]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "1\n"  # the executor's own
