"""The picture of a training: all of its losses are in it, and nothing covers them."""

import math

import matplotlib.figure
import pytest

from w2v_attn.training.learning_curves import plot_curves


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws a history -> its axes: losses, metric, learning rate."""
    figures = []
    save = matplotlib.figure.Figure.savefig

    def keep(self, *arguments, **named):
        figures.append(self)
        save(self, *arguments, **named)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", keep)

    def draw(history, best="wer"):
        plot_curves(history, best, tmp_path / "curves.png")
        assert (tmp_path / "curves.png").stat().st_size > 5000
        return figures[-1].axes

    return draw


def ctc_history(steps=400):
    losses = [3 * math.exp(-step / 150) + 60 * math.exp(-step / 3) + 0.05 for step in range(steps)]
    history = [{"step": step, "loss": loss, "learning_rate": 1e-4} for step, loss in enumerate(losses)]
    return [*history, {"step": steps, "eval_loss": 0.3, "eval_wer": 1.2}]


def test_the_first_losses_of_ctc_are_not_clipped(drawn):
    losses, metric, _ = drawn(ctc_history())
    low, high = losses.get_ylim()
    assert high >= 63
    assert low <= 0.26
    assert losses.get_yscale() == "log"
    assert metric.get_ylim()[1] > 1.2  # a word error rate may be above 100 %


def test_the_legend_covers_no_line(drawn):
    losses, *_ = drawn(ctc_history())
    legend, box = losses.get_legend().get_window_extent(), losses.get_window_extent()
    assert legend.y0 >= box.y1


def test_losses_that_hardly_change_have_a_linear_scale_from_zero(drawn):
    losses, *_ = drawn([{"step": step, "loss": 2 - step / 100} for step in range(100)])
    assert losses.get_yscale() == "linear"
    assert losses.get_ylim()[0] == 0


@pytest.mark.parametrize(
    "history",
    [
        [],
        [{"step": 1, "loss": 2.0}],
        [{"step": 1, "loss": math.nan}, {"step": 2, "loss": math.inf}],
        [{"step": step, "loss": 100 if step < 5 else -0.1} for step in range(99)],
        [{"step": step, "loss": 0.0} for step in range(99)],
    ],
)
def test_every_history_can_be_drawn(history, drawn):
    assert len(drawn(history, "mae")) == 3
