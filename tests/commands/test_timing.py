"""A benchmark that can't be fooled: what is timed, and what is found out."""

import queue
import threading
import time

import pytest

from tfmp.commands.benchmark import timing


class Clock:
    """Time that passes only when somebody spends it."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Fake(timing.Work):
    """A device that works for `step_s` a step while the host goes on, and is slow elsewhere."""

    def __init__(self, clock, *, step_s=0.5, losses=(7.0, 5.0)):
        self.clock = clock
        self.step_s = step_s
        self.losses = iter(losses)
        self.calls = []
        self.steps = 0
        self.busy_until = 0.0

    def step(self):
        self.calls.append("step")
        if not self.steps:
            self.clock.now += 1000.0  # traces and compiles
        elif self.steps < 5:
            self.clock.now += 50.0  # warms up
        self.steps += 1
        self.busy_until = max(self.busy_until, self.clock.now) + self.step_s

    def wait(self):
        self.clock.now = max(self.clock.now, self.busy_until)

    def count(self):
        self.calls.append("count")
        self.wait()
        return self.steps

    def weight(self):
        self.calls.append("weight")
        self.wait()
        return float(self.steps)

    def loss(self, steps):
        self.calls.append("loss")
        self.clock.now += 300.0
        self.steps += steps
        return next(self.losses)


def measure(kind=Fake, steps=10, windows=3, **kwargs):
    clock = Clock()
    work = kind(clock, **kwargs)
    return timing.measure(work, steps=steps, windows=windows, clock=clock), work


def test_compiling_warm_up_and_the_loss_are_outside_of_the_timed_windows():
    measured, work = measure()
    assert measured["window_s"] == [5.0, 5.0, 5.0]  # 10 steps of 0.5 s and nothing else
    assert measured["step_alone_s"] == [0.5] * 3
    assert measured["first_step_s"] == 1000.5
    assert measured["loss"] == (7.0, 5.0)
    assert measured["problems"] == []
    begin, end = measured["window_at"][0]
    assert end - begin == 5.0 and begin > 1400
    last = len(work.calls) - 1 - work.calls[::-1].index("weight")
    window = ["step"] * 10 + ["count", "weight"]
    assert work.calls[: last - 3 * 15 + 1][-2:] == ["step", "weight"]  # the warm-up has ended
    alone = ["step", "count", "weight"]
    assert work.calls[last - 3 * 15 + 1 : last + 1] == (alone + window) * 3
    assert work.calls[last + 1 :] == ["loss"]


def test_calls_of_several_steps():
    class InTens(Fake):
        steps_per_call = 10

        def step(self):
            for _ in range(10):
                super().step()

    measured, work = measure(InTens, steps=20)
    assert measured["window_s"] == [10.0] * 3 and measured["step_alone_s"] == [0.5] * 3
    assert measured["problems"] == []
    assert work.calls.count("step") == 10 * (1 + 2 + 3 * (1 + 2))  # first, warm-up, windows


def problems(kind=Fake, **kwargs):
    return "; ".join(measure(kind, **kwargs)[0]["problems"])


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ((7.0, 7.0), "did not fall"),
        ((7.0, 8.0), "did not fall"),
        ((7.0, float("nan")), "not finite"),
        ((float("inf"), 1.0), "not finite"),
    ],
)
def test_the_loss_has_to_be_finite_and_to_fall(losses, said):
    assert said in problems(losses=losses)


def test_the_loss_of_a_game_need_not_fall_but_has_to_be_finite():
    class Game(Fake):
        falls = False

    assert problems(Game, losses=(1.63, 1.92)) == ""
    assert "not finite" in problems(Game, losses=(1.63, float("nan")))


def test_steps_that_the_device_did_not_do_are_found():
    class Lazy(Fake):
        def count(self):
            return super().count() - self.calls.count("step") // 10

    assert "10 steps advanced the device by 9" in problems(Lazy)


def test_steps_that_train_nothing_are_found():
    class Idle(Fake):
        def weight(self):
            super().weight()
            return 1.0

    assert "left the weights as they were" in problems(Idle)


def test_a_count_that_does_not_wait_is_found():
    class Unsynchronized(Fake):
        def count(self):
            return self.steps

    assert "not synchronized" in problems(Unsynchronized)


def test_windows_that_do_not_wait_are_found_where_single_steps_do():
    class Sometimes(Fake):
        """Waits behind a single step only, and has dropped its work when it is looked at."""

        def wait(self):
            if self.calls[-3:-1] == ["step", "step"]:
                self.busy_until = 0.0
            super().wait()

    assert "for a step alone" in problems(Sometimes)


def test_a_device_that_really_works_on_in_its_own_time():
    """The same with a real clock and a thread as the device."""

    class Device(timing.Work):
        def __init__(self, waits):
            self.queue = queue.Queue()
            self.waits = waits
            self.asked = self.done = 0
            threading.Thread(target=self.work, daemon=True).start()

        def work(self):
            while True:
                time.sleep(self.queue.get())
                self.done += 1
                self.queue.task_done()

        def step(self):
            self.asked += 1
            self.queue.put(0.004)

        def count(self):
            if self.waits:
                self.queue.join()
            return self.asked

        def weight(self):
            self.queue.join()
            return self.done

        def loss(self, steps):
            for _ in range(steps):
                self.step()
            self.queue.join()
            return 1 / self.done

    good = timing.measure(Device(waits=True), steps=10, windows=3)
    assert good["problems"] == []
    assert all(0.04 <= seconds < 0.4 for seconds in good["window_s"])
    fooled = timing.measure(Device(waits=False), steps=10, windows=3)
    assert "not synchronized" in fooled["problems"][0]
