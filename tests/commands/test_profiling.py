"""`python -m tfmp benchmark --profile`: what a GPU did, from a profile made by hand."""

import pathlib

import pytest
import tensorflow as tf
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from tfmp import errors
from tfmp.commands.benchmark import kernels, ours, profiling, rows

MS = 10**9  # in picoseconds

# (stream, kernel, begin and length in ms, memcpy_details); two steps.
EVENTS = [
    ("Stream #1(Compute)", "sm90_xmma_gemm_f16f16_execute", 0.0, 4.0, None),
    ("Stream #1(Compute)", "input_reduce_fusion_12", 4.0, 2.0, None),
    ("Stream #1(Compute)", "sm90_xmma_gemm_f16f16_execute", 7.0, 3.0, None),  # a gap of 1
    ("Stream #2(NCCL)", "ncclDevKernel_AllReduce_Sum_f32", 9.0, 2.992, None),  # beside it for 1
    ("Stream #1(Compute)", "loop_add_fusion", 12.0, 0.008, None),  # a gap of 8 us
    ("Stream #3(MemcpyH2D)", "MemcpyH2D", 1.0, 1.5, "kind_src:pinned kind_dst:device size:8"),
    ("Stream #3(MemcpyH2D)", "MemcpyH2D", 20.0, 0.5, "kind_src:pageable kind_dst:device size:8"),
    ("Stream #3(MemcpyD2D)", "MemcpyD2D", 3.0, 1.0, "kind_src:device kind_dst:device size:8"),
    ("XLA Ops", "a line of names, and no stream", 0.0, 99.0, None),
]


def space(name="/device:GPU:1", events=EVENTS):
    """A profile of a GPU that did this."""
    found = xplane_pb2.XSpace()
    found.planes.add(name="/host:CPU")
    plane = found.planes.add(name=name)
    plane.stat_metadata[1].name = "memcpy_details"
    lines = {}
    for number, (line, kernel, begin, ms, details) in enumerate(events, start=1):
        if line not in lines:
            lines[line] = plane.lines.add(name=line, timestamp_ns=5_000_000)
        plane.event_metadata[number].name = kernel
        event = lines[line].events.add(
            metadata_id=number, offset_ps=round(begin * MS), duration_ps=round(ms * MS)
        )
        if details:
            event.stats.add(metadata_id=1, str_value=details)
    return found


class Work:
    """Counts what is run while the profiler, which is played, looks."""

    steps_per_call = 1

    def __init__(self, monkeypatch, found):
        self.calls, self.seen = 0, None

        def start(folder):
            self.folder, self.seen = pathlib.Path(folder), 0

        def stop():
            self.seen = self.calls - self.before
            (self.folder / "plugins").mkdir()
            (self.folder / "plugins" / "x.xplane.pb").write_bytes(found.SerializeToString())

        monkeypatch.setattr(tf.profiler.experimental, "start", start)
        monkeypatch.setattr(tf.profiler.experimental, "stop", stop)

    def step(self):
        self.calls += 1

    def count(self):
        if self.seen is None:
            self.before = self.calls
        return self.calls


def test_a_profile_by_hand(monkeypatch):
    work = Work(monkeypatch, space())
    work.steps_per_call = 2
    (gpu,) = profiling.profile(work)
    assert work.seen == kernels.CALLS
    steps = 2 * kernels.CALLS
    assert (gpu["gpu"], gpu["kernels"] * steps) == (1, 5)
    times = [gpu[f"{name}_ms"] * steps for name in ("span", "busy", "short_gaps", "long_gaps")]
    assert times == pytest.approx([12.008, 11, 0.008, 1], abs=1e-6)
    spent = {kind: ms * steps for kind, ms in gpu["kinds_ms"].items() if ms}
    expected = {"products": 7, "reductions": 2, "sum of replicas": 2.992}
    expected |= {"copies and fills": 3, "others": 0.008}
    assert spent == pytest.approx(expected)
    assert {k: ms * steps for k, ms in gpu["from_host_ms"].items()} == {
        "pageable": 0.5,
        "pinned": 1.5,
    }
    name, ms, count = gpu["longest"][0]
    assert (name, ms * steps, count * steps) == ("sm90_xmma_gemm_f16f16_execute", 7, 2)
    text = rows.profile([gpu])
    assert "GPU 1" in text and "0.06 pageable, 0.19 pinned" in text
    assert "0.875 ms in 0.25: sm90_xmma_gemm" in text


@pytest.mark.parametrize(
    ("products", "slow"),
    [((18.8, 18.9, 19.1, 26.3), [3]), ((26.3, 18.8), [0]), ((18.8, 19.5), []), ((18.8,), [])],
)
def test_a_gpu_that_is_slower_than_the_others_is_named(products, slow):
    """Three of these waited for the fourth, a hot one, within the sum."""
    gpus = [
        kernels.summary(
            number,
            [
                kernels.Kernel("gemm", 0.0, ms),
                kernels.Kernel("ncclDevKernel_AllReduce", ms, 29.0 - ms),
            ],
            steps=1,
        )
        for number, ms in enumerate(products)
    ]
    text = rows.profile(gpus)
    assert text.count("they wait for it") == len(slow)
    for number in slow:
        assert f"GPU {number} takes 1.4" in text or f"GPU {number} takes 1.39" in text


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)", 0),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_26", 1),
        ("void cudnn::fusion::compute_dot_do_o_specialized<false, 64>(", 1),
        ("sm90_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc_tilesize128", 2),
        ("gemm_fusion_MatMul_1_192", 3),
        ("loop_concatenate_fusion_1", 4),
        ("input_convert_reduce_fusion_12", 5),
        ("Memset 3", 6),
        ("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<...>", 1),
        ("nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_TNT", 3),
        ("triton_red_fused__log_softmax_nll_loss_forward_12", 5),
        ("triton_per_fused_native_layer_norm_backward_3", 5),
        ("triton_poi_fused_gelu_backward_7", 7),
        ("triton_poi_fused__to_copy_add_gelu_3", 7),
        ("triton_tem_fused_mm_3", 3),
        ("triton_poi_fused__scaled_dot_product_flash_attention_clone_4", 7),
        ("triton_per_fused__scaled_dot_product_flash_attention_backward_sum_1", 5),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float>", 6),
        ("Memcpy HtoD (Pinned -> Device)", 6),
        ("loop_convert_fusion_12", 7),
        ("loop_select_fusion", 7),
    ],
)
def test_kinds_of_kernels(name, kind):
    assert kernels.kind_of(name) == [*kernels.KINDS, kernels.OTHERS][kind]


def test_without_a_gpu_nothing_is_measured_first(monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    with pytest.raises(errors.UserError, match=r"^Expected a GPU for --profile"):
        ours.measure({"profile": True})


@pytest.mark.parametrize("found", [xplane_pb2.XSpace(), space(events=[])])
def test_without_kernels_of_a_gpu_it_says_so(monkeypatch, found):
    with pytest.raises(errors.UserError, match="Received none"):
        profiling.profile(Work(monkeypatch, found))
