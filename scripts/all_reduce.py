"""Times the sum of a vector over all workers, as a training step makes it.

    python -m tfmp launch -n 2 -- python scripts/all_reduce.py
    srun python scripts/all_reduce.py

Prints, on the chief, seconds of float32 vectors of 1, 10 and 100 MB: the median of ten, and the
lowest and highest. Each replica is a GPU, or the CPU where there is none.
"""

import statistics
import time

import tensorflow as tf

from tfmp import cli, distribution, workers

cli.prepare()
strategy = distribution.resolve("multi_worker")
worker = distribution.worker(strategy)
for megabytes in (1, 10, 100):

    @tf.function
    def summed(size=megabytes * 250_000):
        """One number of the sum, so that only that is fetched."""
        return strategy.run(lambda: distribution.replica_sum(tf.ones([size]))[0])

    seconds = []
    for _ in range(12):
        workers.wait(worker, "all_reduce")  # until all begin
        began = time.perf_counter()
        for one in strategy.experimental_local_results(summed()):
            assert one.numpy() == strategy.num_replicas_in_sync
        seconds.append(time.perf_counter() - began)
    measured = sorted(seconds[2:])
    if worker.is_chief:
        print(
            f"{strategy.num_replicas_in_sync} replicas, {megabytes} MB: "
            f"{statistics.median(measured):.4f} s ({measured[0]:.4f} to {measured[-1]:.4f})"
        )
workers.finish(worker)
