"""Running a rule only where cells are active, for the paths that compute rectangles."""

from __future__ import annotations

from scipy import ndimage
from torch import Tensor

from morphogen.automata.embedding import Inputs
from morphogen.automata.update_rule import UpdateRule
from morphogen.core.keys import Key

Box = tuple[int, int, int, int]  # top, left, bottom, right; the last two are outside


def around(active: Tensor) -> tuple[slice, slice]:
    """The rows and columns of the smallest rectangle that holds the active cells (B, 1, H, W) and one cell around,
    within the grid: a cell that never changes needs no more of its neighbours. At least two of each.
    """
    spans = []
    for axis in (-2, -1):
        used = active.any(dim=0)[0].any(dim=-3 - axis).nonzero().flatten()
        size = active.shape[axis]
        first, last = (int(used[0]), int(used[-1])) if len(used) else (0, 0)
        spans.append(slice(max(0, min(first - 1, size - 2)), min(size, last + 2)))
    return spans[0], spans[1]


def boxes(active: Tensor) -> list[Box]:
    """Disjoint rectangles that hold every active cell (boolean (H, W)) and the cell around it, within the grid."""
    height, width = active.shape
    labels, _ = ndimage.label(active.cpu().numpy(), structure=[[1] * 3] * 3)
    found: list[Box] = []
    for rows, columns in ndimage.find_objects(labels):
        top, bottom = max(rows.start - 1, 0), min(rows.stop + 1, height)
        left, right = max(columns.start - 1, 0), min(columns.stop + 1, width)
        box = (min(top, max(height - 2, 0)), min(left, max(width - 2, 0)), bottom, right)
        while (other := next((b for b in found if _overlap(b, box)), None)) is not None:
            found.remove(other)
            box = (min(box[0], other[0]), min(box[1], other[1]), max(box[2], other[2]), max(box[3], other[3]))
        found.append(box)
    return found


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def mask_halo(fire: Tensor, key: Key) -> None:
    """Let cells rest from the step on in which news of a cut (`Key.cuts`) reaches them: nothing asks for them then.

    fire: which cells update, (steps, B, H, W), changed in place.
    """
    steps, _, height, width = fire.shape
    for image, (above, below, left, right) in enumerate(key.cuts((height, width))):
        for i in range(steps):
            if above:
                fire[i, image, : i + 1] = 0
            if below:
                fire[i, image, max(0, height - i - 1) :] = 0
            if left:
                fire[i, image, :, : i + 1] = 0
            if right:
                fire[i, image, :, max(0, width - i - 1) :] = 0


def run_active(rule: UpdateRule, state: Tensor, inputs: Inputs, fire: list[Tensor], active: Tensor) -> Tensor:
    """`rule.run`, computing only rectangles around the active cells (B, 1, H, W), which `fire` is restricted to.

    A cell that isn't active never changes, so one cell around is all that the active ones need. With group
    normalisation the statistics are of the active cells, wherever they are: then everything is computed.
    """
    if rule.norm is not None:
        return rule.run(state, inputs.at, fire, statistics_over=active, labels=inputs.labels)
    state = state.clone()
    for top, left, bottom, right in boxes(active.any(dim=0)[0]):
        rows, columns = slice(top, bottom), slice(left, right)
        there = inputs.crop(rows, columns)
        masks = [mask[..., rows, columns] for mask in fire]
        state[..., rows, columns] = rule.run(state[..., rows, columns], there.at, masks, labels=inputs.labels)
    return state
