import io

import pytest

from smarttrim_mm.engine.progress import Progress, clock


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (75, "1:15"), (3725, "1:02:05")])
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_bar_shows_steps_time_left_and_a_note(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("smarttrim_mm.engine.progress.time.monotonic", lambda: now[0])
    out = io.StringIO()
    bar = Progress("calibrating", 4, file=out, at_most=True)
    now[0] = 30.0
    bar.advance("1.9x")
    bar.advance("unseen: too soon after the last")
    now[0] = 60.0
    bar.advance()
    bar.advance()
    bar.close("2.0x")
    drawn = [line.rstrip() for line in out.getvalue().split("\r")[1:]]
    assert drawn[0] == "calibrating [                    ] 0/4, 0:00 elapsed"
    assert drawn[1] == "calibrating [#####               ] 1/4, 0:30 elapsed, ETA at most 1:30  1.9x"
    assert drawn[2] == "calibrating [###############     ] 3/4, 1:00 elapsed, ETA at most 0:20"
    assert drawn[-1] == "calibrating [####################] 4/4, 1:00 elapsed  2.0x"
    assert out.getvalue().endswith("\n")


def test_a_bar_that_goes_on_counts_the_time_of_its_own_steps(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("smarttrim_mm.engine.progress.time.monotonic", lambda: now[0])
    out = io.StringIO()
    bar = Progress("training", 100, file=out, done=80)
    now[0] = 20.0
    bar.reach(90)
    drawn = [line.rstrip() for line in out.getvalue().split("\r")[1:]]
    assert drawn == [
        "training [################    ] 80/100, 0:00 elapsed",
        "training [##################  ] 90/100, 0:20 elapsed, ETA 0:20",
    ]


def test_a_line_fits_the_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "30")
    out = Terminal()
    Progress("training", 10, file=out).close("a note that is too long for the line")
    assert all(len(line) < 30 for line in out.getvalue().splitlines()[-1].split("\r"))
