"""Child processes: limits, ends, errors and environments."""

import os
import pathlib
import subprocess
import sys
import time
import types

import pytest

from tfmp import __main__
from tfmp.commands.benchmark import children


def run(code, limit_s=20):
    return children.run([sys.executable, "-c", code], os.environ, limit_s)


def is_alive(pid):
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition):
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def test_the_last_line_is_the_measurement():
    assert run('print("noise"); print(\'{"a": 1}\')') == {"a": 1}
    assert run('print(\'{"a": 1}\'); print("noise"); print(3)') == {"a": 1}


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import sys; sys.exit('error: the reason')", "the reason"),
        ("raise ValueError('the bug')", "ValueError: the bug"),
        ("import sys; print('error: it', file=sys.stderr); sys.exit('Aborted')", "it"),
        ("import os; os.kill(os.getpid(), 9)", "ended by SIGKILL"),
        ("import os; os._exit(3)", "nothing said why"),
        ("print('no json')", "'no json'"),
    ],
)
def test_a_failed_child_says_why_in_a_line(code, said):
    with pytest.raises(children.ChildError, match=said) as failed:
        run(code)
    assert "\n" not in str(failed.value)


def test_a_program_that_is_not_there():
    with pytest.raises(children.ChildError, match=r"can't start /no/python"):
        children.run(["/no/python"], os.environ, 5)


FAMILY = """
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
pathlib.Path(FILE).write_text(str(child.pid))
time.sleep(60)
"""


def test_the_time_limit_ends_the_whole_process_group(tmp_path):
    file = tmp_path / "pid"
    with pytest.raises(children.ChildError, match="not done after 2 s"):
        run(FAMILY.replace("FILE", repr(str(file))), limit_s=2)
    assert wait_until(lambda: not is_alive(int(file.read_text())))


def test_ctrl_c_and_sigterm_end_the_children(tmp_path, monkeypatch, capsys, signal_once):
    """The whole command, whose child is played by one that never ends."""
    file = tmp_path / "pid"
    endless = tmp_path / "python"
    endless.write_text(f"#!{sys.executable}\n" + FAMILY.replace("FILE", repr(str(file))))
    endless.chmod(0o755)
    monkeypatch.setattr(children, "sys", types.SimpleNamespace(executable=str(endless)))
    signal_once(lambda: file.exists() and file.read_text())
    with pytest.raises(SystemExit) as ended:
        __main__.main(["benchmark", f"--output={tmp_path / 'out.json'}"])
    assert ended.value.code == 130
    assert "error: interrupted" in (err := capsys.readouterr().err) and err.count("\n") == 1
    assert wait_until(lambda: not is_alive(int(file.read_text())))


def test_the_peer_has_an_environment_of_its_own(tmp_path):
    ours = {"LD_LIBRARY_PATH": "a", "PYTHONPATH": "b", "XLA_FLAGS": "c", "TF_XLA_FLAGS": "d"}
    kept = {"PATH": "e", "CUDA_VISIBLE_DEVICES": "1", "HOME": "f"}
    assert children.peer_environment(ours | kept) == kept
    # And it is used: this peer prints what it got.
    fake = tmp_path / "python"
    fake.write_text(f"#!{sys.executable}\nimport json, os\nprint(json.dumps(dict(os.environ)))\n")
    fake.chmod(0o755)
    got = children.measure("torch", {"replicas": 1}, peer_python=str(fake), limit_s=20)
    assert "PATH" in got and "TF_CPP_MIN_LOG_LEVEL" not in got and "KERAS_BACKEND" not in got


def test_without_torch_the_peer_says_so(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError\n")  # where it is installed, too
    code = f"import sys, runpy; sys.path.insert(1, {str(tmp_path)!r}); sys.argv = ['x', '{{}}']; "
    code += f"runpy.run_path({str(children.PEER)!r}, run_name='__main__')"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: torch is not installed for ")
    assert ended.stderr.count("\n") == 1 and not ended.stdout


def test_the_peer_imports_nothing_of_ours():
    folder = children.PEER.parent
    for name in ("peer_torch.py", "peer_gpt.py", "timing.py", "kernels.py"):
        assert "tfmp." not in "".join(
            line for line in (folder / name).read_text().splitlines() if "import" in line[:10]
        )
