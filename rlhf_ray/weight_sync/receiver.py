"""An engine's side of a weight push: methods that vLLM mixes into its workers (`worker_extension_cls`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from rlhf_ray.weight_sync.broadcast import Rendezvous, WeightGroup
from rlhf_ray.weight_sync.bucket import Bucket, WeightPushError


class WeightReceiver:
    """Runs inside each vLLM worker process. `rank` and `model_runner` are vLLM's."""

    rank: int
    model_runner: Any
    _group: WeightGroup | None = None

    def join_weight_group(self, meeting: Rendezvous, first_rank: int, buckets: Sequence[Bucket]) -> None:
        """Joins the group as `first_rank` plus this worker's tensor-parallel rank."""
        self._buckets = tuple(buckets)
        self._names = {spec.name for bucket in buckets for spec in bucket.specs}
        self._group = WeightGroup(meeting, first_rank + self.rank)

    def leave_weight_group(self) -> None:
        """Over gloo, a sender that waits for this worker gets an error at once."""
        self._group = None

    def receive_weights(self, version: int) -> int | str:
        """How many tensors came, or what went wrong: the engine is unusable then until a later push succeeds. An error
        that a worker raised would be the answer to the next call, where vLLM has several workers."""
        try:
            return self._receive(version)
        except Exception as error:  # whatever it is, the engine's owner is told
            return f"{type(error).__name__}: {error}"

    def _receive(self, version: int) -> int:
        """Loads one push; returns how many tensors came. Each bucket is verified before it is loaded."""
        received: set[str] = set()
        group = self._group
        if group is None:
            raise WeightPushError(f"version {version}: this engine is in no weight group")

        def counted() -> Any:
            for name, tensor in group.receive(self._buckets, version):
                received.add(name)
                yield name, tensor

        self._load(counted())
        if received != self._names:
            raise WeightPushError(f"version {version}: the engine left {sorted(self._names - received)[:3]} unread")
        return len(received)

    def _load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Through vLLM's own reload path."""
        self.model_runner.reload_weights(weights_iterator=weights)
        _repack_tied_head(self.model_runner.get_model())


def _repack_tied_head(model: Any) -> None:
    """Rebuilds what vLLM's CPU kernels derived from a head that shares the embedding's weight.

    vLLM 0.32 packs such a head for oneDNN at start, but its reload processes only the layers whose tensors arrive: the
    embedding is new then and the packed head is old.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)
