"""The state of a stage and its compiled step, as the loop and a replay take them."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from sgqlm import config, types
from sgqlm.parallel import mesh as mesh_lib
from sgqlm.parallel import rules
from sgqlm.train import optim, state, step


class Program:
    """Holds the state of a stage and steps it.

    Args:
        train: settings of the run.
        stage: the stage.
        mesh: the current mesh.
        index: row of the stage in the table.
        num_steps: of the stage.
        loss_fn: of the stage.
        params: the whole tree on the mesh. Its trainable leaves are consumed (donated).
        done: steps done before.
        opt: function from the tree that a checkpoint holds beside the parameters, as shapes, to
            the one it holds; None: a fresh start.

    Attributes:
        state: now.
        frozen: parameters that do not train.
    """

    def __init__(
        self,
        train: config.TrainConfig,
        stage: config.StageConfig,
        mesh: Mesh,
        *,
        index: int,
        num_steps: int,
        loss_fn: step.LossFn,
        params: types.Params,
        done: int = 0,
        opt: Callable[[Any], Any] | None = None,
    ):
        trainable, self.frozen = state.split(params, stage.learning_rates)
        optimizer = optim.make(stage, num_steps)
        places, _ = state.partition(rules.param_shardings(params, mesh), stage.learning_rates)
        window = train.spike_window if train.spike_factor else 0
        shardings = step.state_shardings(trainable, optimizer, places, mesh, has_guard=bool(window))
        whole: Any = shardings.step
        self._mesh, self._whole = mesh, whole
        self._key = jax.random.fold_in(jax.random.key(train.seed), index)
        self._steps: dict[Any, Callable[..., Any]] = {}  # by the shapes of a batch
        self.state = step.init_state(trainable, optimizer, shardings, spike_window=window)
        if opt is not None:
            shapes = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), self.opt()
            )
            self.state = self.state._replace(step=self._scalar(done), **opt(shapes))
        self._step = step.make_train_step(
            loss_fn,
            optimizer,
            shardings=shardings,
            accumulation=stage.accumulation,
            spike_factor=train.spike_factor,
        )

    def take(self, placed: tuple[types.Batch, Any]) -> tuple[dict[str, jax.Array], bool]:
        """Take a step.

        Args:
            placed: a batch on the mesh, with its cached features or None.

        Returns:
            Its figures, which may still be computed, and whether the step had to be compiled.
        """
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves(placed))
        is_new = shapes not in self._steps
        if is_new:
            self._steps[shapes] = self._compiled(placed)
        take = self._steps[shapes]
        self.state, report = take(self.state, self.frozen, *placed, self._key)
        return report, is_new

    def _compiled(self, placed: tuple[types.Batch, Any]) -> Callable[..., Any]:
        """Return the step; with several processes compiled, once all of them have it.

        Processes compile at their own pace, and the first exchange of a group of CPU devices waits
        half a minute for its peers and no longer.
        """
        if jax.process_count() == 1:
            return self._step
        found = self._step.lower(self.state, self.frozen, *placed, self._key).compile()
        multihost_utils.sync_global_devices("compiled")
        return found

    def params(self) -> types.Params:
        """Return the whole tree; its trainable leaves live until the next step."""
        return state.join(self.state.trainable, self.frozen)

    def opt(self) -> dict[str, Any]:
        """Return what a checkpoint holds beside the parameters to go on from."""
        kept = {name: getattr(self.state, name) for name in ("opt", "bad_run", "skipped")}
        return kept if self.state.guard is None else {**kept, "guard": self.state.guard}

    def rewind(self, done: int, values: Mapping[str, float]) -> None:
        """Go back before steps that were left out: only counts had changed.

        Args:
            done: steps done before them.
            values: figures of the first of them.
        """
        spike = int(is_spike(values))
        counts = {name: values[name] - (1 - spike) for name in ("bad_run", "skipped")}
        current = self.state._replace(
            step=self._scalar(done), **{name: self._scalar(n) for name, n in counts.items()}
        )
        if current.guard is not None:
            spikes, run = values["spikes"] - spike, values["spike_run"] - spike
            guard = current.guard._replace(spikes=self._scalar(spikes), run=self._scalar(run))
            current = current._replace(guard=guard)
        self.state = current

    def bad_rows(self, drawn: tuple[types.Batch, Any]) -> list[int]:
        """Return the rows of a batch that alone make its step not finite; no state changes.

        Args:
            drawn: the whole batch on the host, with its cached features or None.
        """
        before, count = self.state, len(drawn[0].row)
        kept = jax.device_get((before.step, before.bad_run, before.skipped))

        def is_finite(rows: np.ndarray) -> bool:
            every = np.resize(rows, count)  # the compiled step wants a full batch
            placed = mesh_lib.put_batch(jax.tree.map(lambda leaf: leaf[every], drawn), self._mesh)
            halted = self._scalar(step.MAX_BAD_RUN)
            self.state = self.state._replace(step=self._scalar(kept[0]), bad_run=halted)
            report, _ = self.take(placed)
            return bool(np.isfinite(jax.device_get((report["loss"], report["grad_norm"]))).all())

        found = step.bad_rows(is_finite, count)
        names = ("step", "bad_run", "skipped")
        counts = {name: self._scalar(n) for name, n in zip(names, kept, strict=True)}
        self.state = self.state._replace(**counts)
        return found

    def _scalar(self, value: Any) -> jax.Array:
        return mesh_lib.put(np.asarray(value, np.int32), self._whole)


def is_spike(values: Mapping[str, float]) -> bool:
    """Tell whether a step that was left out was a spike rather than not finite."""
    return bool(np.isfinite(values["loss"]) and np.isfinite(values["grad_norm"]))
