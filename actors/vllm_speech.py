"""An answer of vLLM, said while it comes: what each step adds, and the whole in the end."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from actors.engine import Piece, Say

if TYPE_CHECKING:
    from vllm import PoolingParams, SamplingParams


class Speech:
    """One request's outputs, as they are told.

    Args:
        logprobs: reads those of an output, in OpenAI's chat format.

    Attributes:
        begun: whether anything was said: what another engine would generate might not fit it.
    """

    def __init__(self, say: Say, logprobs: Callable[[Any], dict[str, Any] | None]) -> None:
        self.begun = False
        self._say, self._logprobs = say, logprobs
        self._whole: Any = None

    def spoken(self, params: "SamplingParams | PoolingParams") -> "SamplingParams | PoolingParams":
        """The parameters with which the engine tells what is new at each step."""
        from vllm.sampling_params import RequestOutputKind

        spoken = params.clone()
        spoken.output_kind = RequestOutputKind.DELTA
        return spoken

    def heard(self, output: Any) -> Any:
        """Say what an output adds; returns all that was heard so far, as one output."""
        for completion in output.outputs:
            if completion.text or completion.logprobs:
                self.begun = True
                self._say(Piece(completion.index, completion.text, self._logprobs(completion)))
        if self._whole is None:
            self._whole = output
        else:
            self._whole.add(output, aggregate=True)
            self._whole.metrics = output.metrics
        return self._whole
