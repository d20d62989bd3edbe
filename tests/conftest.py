"""Two logical CPUs, exact float32, quick compiling, Keras' global state restored after each test."""

import gc
import os

gc.disable()  # it is a fifth of TensorFlow's import; garbage is collected between tests
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["KERAS_BACKEND"] = "tensorflow"
# No program started by a test keeps what it compiles, unless the test says where.
os.environ["TF_XLA_FLAGS"] = "--tf_xla_persistent_cache_directory="

import keras
import pytest
import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
tf.config.experimental.enable_tensor_float_32_execution(False)
if not tf.config.list_physical_devices("GPU"):
    # XLA compiles small programs twice as fast if it doesn't optimize their machine code. An empty
    # XLA_FLAGS in the environment brings back the code that users have.
    os.environ.setdefault(
        "XLA_FLAGS",
        "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
        "--xla_cpu_parallel_codegen_split_count=1",
    )


@pytest.fixture(autouse=True)
def global_state():
    """Restores the global dtype policy."""
    policy = keras.config.dtype_policy()
    yield
    keras.config.set_dtype_policy(policy)
    # Frozen, else the collector would go through TensorFlow's old graphs again and again.
    gc.collect()
    gc.freeze()
