"""An update rule's steps by the Triton kernels: for inference, for training, and as what a model is accelerated by.

Needs Triton, so import it only where that is installed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from morphogen.automata.embedding import Inputs
from morphogen.automata.fused.compiler import Unavailable
from morphogen.automata.fused.protocol import deviation
from morphogen.automata.fused.triton_launch import ConditioningInputs, Fire, Folded, Step
from morphogen.automata.update_rule import StepConditioning, UpdateRule, Weights
from morphogen.core.keys import Key
from morphogen.core.request import Precision, PrecisionChoice

_GRAPHS = 16  # how many are kept
# Relative errors that `TritonAcceleration.check` lets pass; PyTorch's own convolutions are in TF32 by default.
_CHECKED = {"float32": 1e-2, "bfloat16": 0.2}


class _Conditions(nn.Module):
    """`UpdateRule.condition` as a module, so that it can be called with other parameters."""

    def __init__(self, rule: UpdateRule) -> None:
        super().__init__()
        self.rule = rule

    def forward(self, encoded: Tensor, w: Weights, labels: Tensor | None) -> StepConditioning:
        return self.rule.condition(encoded, w, labels)


@dataclass(frozen=True)
class _Run:
    """Steps of a rule: all that is no tensor that changes from call to call."""

    rule: UpdateRule
    bf16: bool
    steps: int
    size: tuple[int, int]
    inputs: Inputs
    fire: Fire | None

    def tensors(self) -> list[Tensor]:
        """The tensors that `with_tensors` puts in other places."""
        inputs, fire = self.inputs, self.fire
        where = [] if inputs.x is None or inputs.y is None else [inputs.x, inputs.y]
        told = [] if inputs.labels is None else [inputs.labels]
        return [inputs.time, *told, *where, *([] if fire is None else [fire.keys, fire.origins])]

    def with_tensors(self, tensors: list[Tensor]) -> _Run:
        """The same with other tensors of the same shapes."""
        time, *rest = tensors
        inputs, fire = replace(self.inputs, time=time), self.fire
        if inputs.labels is not None:
            inputs, rest = replace(inputs, labels=rest[0]), rest[1:]
        if inputs.x is not None:
            inputs, rest = replace(inputs, x=rest[0], y=rest[1]), rest[2:]
        if fire is not None:
            fire = replace(fire, keys=rest[0], origins=rest[1])
        return replace(self, inputs=inputs, fire=fire)

    def name(self) -> tuple[Any, ...]:
        """The key of its graphs, beside the shapes of the tensors."""
        threshold = None if self.fire is None else self.fire.threshold
        parameters = tuple((p.data_ptr(), p.requires_grad) for p in self.rule.parameters())
        inputs = self.inputs
        return (
            parameters,
            self.bf16,
            self.steps,
            self.size,
            inputs.steps,
            inputs.encoding,
            inputs.x is None,
            inputs.labels is None,
            threshold,
        )

    def condition(
        self, step: int, w: Weights, images: int | None = None, parameters: dict[str, Tensor] | None = None
    ) -> StepConditioning:
        """The step's conditioning; for each of `images` apart, or as the timesteps are. parameters: in
        place of `conditioners`.
        """
        encoded, labels = self.inputs.at(step), self.inputs.labels
        if images is not None:
            encoded = encoded.expand(images, -1, -1, -1)
        encoded = encoded.contiguous(memory_format=torch.channels_last)
        bf16 = self.bf16 and encoded.is_cuda and encoded.shape[-2:] != (1, 1)
        with torch.autocast(encoded.device.type, torch.bfloat16, enabled=bf16, cache_enabled=False):
            found: StepConditioning = functional_call(_Conditions(self.rule), parameters or {}, (encoded, w, labels))
        return found

    def conditioners(self) -> dict[str, Tensor]:
        """The trained parameters that `condition` reads from the rule, by their names in `_Conditions`."""
        small = ("embed.", "label_vectors.", "condition_perception.", "condition_hidden.")
        named = {name: p for name, p in self.rule.named_parameters() if p.requires_grad}
        return {
            f"rule.{n}": p for n, p in named.items() if n.startswith(small) or n in ("perceive.bias", "hidden.bias")
        }

    def forward(self, state: Tensor, w: Weights) -> list[Tensor]:
        """The state (B, cells, c) before each step, and the last."""
        folded, states = Folded.of(self.rule, w, self.bf16), [state]
        for i in range(self.steps):
            conditioning = ConditioningInputs.of(self.condition(i, w), self.size)
            states.append(Step(folded, conditioning, states[-1], self.size).forward(self.fire, i))
        return states

    def last(self, state: Tensor) -> Tensor:
        """The last state only."""
        w = self.rule.weights()
        folded = Folded.of(self.rule, w, self.bf16)
        for i in range(self.steps):
            conditioning = ConditioningInputs.of(self.condition(i, w), self.size)
            state = Step(folded, conditioning, state, self.size).forward(self.fire, i)
        return state

    def backward(self, states: list[Tensor], gradient: Tensor, w: Weights) -> list[Tensor | None]:
        """The gradients of the first state, of the folded weights, of the norm's weight and bias where it has them,
        and of `conditioners`.
        """
        folded, c = Folded.of(self.rule, w, self.bf16), self.rule.channels
        leaves = w._replace(
            perceive_embedding=w.perceive_embedding.detach().requires_grad_(),
            hidden_embedding=w.hidden_embedding.detach().requires_grad_(),
        )
        # Leaves made here, since those of the rule belong to another stream than a graph is captured on.
        own = {name: p.detach().requires_grad_() for name, p in self.conditioners().items()}
        wanted = [leaves.perceive_embedding, leaves.hidden_embedding, *own.values()]
        totals = [torch.zeros_like(t, dtype=torch.float32) for t in wanted]
        mains: list[Tensor] = []
        for i in reversed(range(self.steps)):
            with torch.enable_grad():
                conditioning = ConditioningInputs.of(self.condition(i, leaves, len(gradient), own), self.size)
            step = Step(
                folded,
                ConditioningInputs(tuple(t.detach() for t in conditioning.parts), conditioning.per_cell_embedding),
                states[i],
                self.size,
            )
            found = step.backward(gradient, self.fire, i)
            gradient = found.state
            main = [found.perceive, found.hidden, found.output, found.output_bias, *found.norm]
            mains = main if not mains else [a.add_(b) for a, b in zip(mains, main, strict=True)]
            given = [g.to(t.dtype) for g, t in zip(found.conditioning, conditioning.parts, strict=True)]
            parts = torch.autograd.grad(conditioning.parts, wanted, given, allow_unused=True)
            for total, part in zip(totals, parts, strict=True):
                if part is not None:
                    total += part
        perceive, hidden, output, bias, *norm = mains
        hidden, output = hidden.view(-1, 2 * c, 1, 1), output.view(c, -1, 1, 1)
        weights = [perceive, totals[0], totals[1], hidden, output, bias]
        return [gradient, *weights, *norm, *totals[2:]]


class _Steps(torch.autograd.Function):
    """The steps with gradients by the kernels, which keeps each step's state and computes everything else again."""

    @staticmethod
    def forward(ctx: Any, run: _Run, graphs: _Graphs | None, state: Tensor, *flat: Tensor) -> Tensor:
        count = len(Weights._fields)

        def work(tensors: list[Tensor]) -> list[Tensor]:
            state, *rest = tensors
            weights = Weights(*rest[:count])
            return run.with_tensors(rest[count:]).forward(state, weights)

        tensors = [state, *flat[:count], *run.tensors()]
        states = work(tensors) if graphs is None else graphs(("forward", *run.name()), work, tensors)
        ctx.run, ctx.graphs = run, graphs
        ctx.save_for_backward(*states[:-1], *flat[:count])
        return states[-1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        run: _Run = ctx.run
        count, steps = len(Weights._fields), run.steps

        def work(tensors: list[Tensor]) -> list[Tensor | None]:
            gradient, *rest = tensors
            weights = Weights(*rest[steps : steps + count])
            return run.with_tensors(rest[steps + count :]).backward(rest[:steps], gradient, weights)

        tensors = [gradient.float().contiguous(), *ctx.saved_tensors, *run.tensors()]
        with torch.autocast(gradient.device.type, enabled=False):
            found = work(tensors) if ctx.graphs is None else ctx.graphs(("backward", *run.name()), work, tensors)
        state, *rest = found
        assert state is not None
        return None, None, state.to(gradient.dtype), *rest


class _Graphs:
    """Step loops as CUDA graphs: captured at the first call with tensors of some shapes, replayed from then on."""

    def __init__(self) -> None:
        self._made: OrderedDict[Any, tuple[Any, list[Tensor], list[Any]]] = OrderedDict()

    def __call__(self, name: Any, work: Callable[[list[Tensor]], list[Any]], tensors: list[Tensor]) -> list[Any]:
        """work(tensors). `name` is to say everything that work depends on beside the tensors."""
        key = name, tuple((t.shape, t.stride(), t.dtype) for t in tensors)
        if key not in self._made:
            self._made[key] = self._capture(work, tensors)
            if len(self._made) > _GRAPHS:
                self._made.popitem(last=False)
        self._made.move_to_end(key)
        graph, places, results = self._made[key]
        for place, tensor in zip(places, tensors, strict=True):
            place.copy_(tensor)
        graph.replay()
        return [None if result is None else result.clone() for result in results]

    @staticmethod
    def _capture(
        work: Callable[[list[Tensor]], list[Any]], tensors: list[Tensor]
    ) -> tuple[Any, list[Tensor], list[Any]]:
        places = [t.detach().clone() for t in tensors]
        stream, now = torch.cuda.Stream(), torch.cuda.current_stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(now)
        with torch.cuda.stream(stream):  # compiles the kernels and lets libraries set up
            for _ in range(2):
                work(places)
        now.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            results = work(places)
        return graph, places, results


class TritonAcceleration:
    """The fast form of a model's rules on CUDA devices: a `RuleAcceleration`.

    precision: of the products; auto is bfloat16 where the device has it. Raises Unavailable, saying why, where it is
    asked for and the device has it not.
    """

    device_type = "cuda"

    def __init__(self, precision: PrecisionChoice = "auto") -> None:
        self.wanted = precision
        has_bfloat16 = not torch.cuda.is_available() or torch.cuda.is_bf16_supported()
        if precision == "bfloat16" and not has_bfloat16:
            raise Unavailable("this device has no bfloat16 products")
        self.precision: Precision = ("bfloat16" if has_bfloat16 else "float32") if precision == "auto" else precision
        self._graphs = _Graphs()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)(self.wanted)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.wanted,)

    def run(
        self,
        rule: UpdateRule,
        state: Tensor,
        inputs: Inputs,
        steps: int,
        fire: Fire | None = None,
        active: Tensor | None = None,
        recompute: bool = False,
    ) -> Tensor:
        """The state (B, c, H, W) after `steps` steps of a rule, channels last; with gradients where they are wanted.

        state: float32 or bfloat16, as which it is also kept from step to step; others become float32. fire: from
        `fire`, or None: every cell fires. active: None; these kernels compute every cell. recompute: whatever
        it says, each step's state is kept and nothing else.
        """
        assert active is None, "the Triton kernels compute every cell"
        size = (state.shape[-2], state.shape[-1])
        moved = (
            None
            if fire is None
            else replace(fire, keys=fire.keys.to(state.device), origins=fire.origins.to(state.device))
        )
        run = _Run(rule, self.precision == "bfloat16", steps, size, inputs, moved)
        graphs = self._graphs if state.device.type == self.device_type else None
        kept = state if state.dtype in (torch.float32, torch.bfloat16) else state.float()
        cells = kept.permute(0, 2, 3, 1).flatten(1, 2).contiguous()
        with torch.autocast(state.device.type, enabled=False):
            if torch.is_grad_enabled():
                norm = [] if rule.norm is None else [rule.norm.weight, rule.norm.bias]
                cells = _Steps.apply(run, graphs, cells, *rule.weights(), *norm, *run.conditioners().values())
            else:
                tensors = [cells, *run.tensors()]

                def work(tensors: list[Tensor]) -> list[Tensor]:
                    return [run.with_tensors(tensors[1:]).last(tensors[0])]

                cells = (work(tensors) if graphs is None else graphs(("last", *run.name()), work, tensors))[0]
        return cells.view(len(state), *size, rule.channels).permute(0, 3, 1, 2)

    def history_bytes(
        self, rule: UpdateRule, per_cell_embedding: bool, batch: int, size: tuple[int, int], steps: int
    ) -> int:
        """Bytes that a training step keeps of one run of a rule for its gradients."""
        return batch * size[0] * size[1] * rule.channels * 4 * steps

    def fire(self, key: Key, nca_steps: int, rate: float, size: tuple[int, int], active: Tensor | None) -> Fire | None:
        """`Key.fire_masks`, for the kernels to work out; None where every cell fires."""
        fire = Fire.of(key, nca_steps, rate, torch.device("cpu"))
        return None if fire.threshold >= 2**32 else fire

    def check(self, rule: UpdateRule, per_cell_embedding: bool, gradients: bool) -> None:
        """As `RuleAcceleration.check`; also raises Unavailable where the kernels do not run on the device."""
        try:
            error = deviation(self, rule, per_cell_embedding, gradients)
        except Exception as failure:  # whatever Triton's compiler, its launcher or the driver say
            reason = str(failure).strip().splitlines()
            raise Unavailable(
                f"the Triton kernels do not run here: {reason[0] if reason else type(failure).__name__}"
            ) from failure
        if not error < _CHECKED[self.precision]:
            raise Unavailable(f"the Triton kernels are wrong on this device, by {error:.2g}")
