"""Bringing up a vLLM engine from a tier's configuration."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from actors.admission import Admission
from actors.speculation import Speculation
from actors.vllm_arguments import (
    check_parsers,
    engine_arguments,
    own_defaults,
    set_environment,
)
from pipelines.engine_time import EngineClock, Occupancy
from pipelines.tier import VLLM

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM


def load(
    config: VLLM,
    planned: Mapping[str, Any],
    clock: EngineClock,
    occupancy: Occupancy,
    admission: Admission,
    speculation: Speculation,
) -> "AsyncLLM":
    """An engine that runs; takes long. Its steps are told to the last four.

    Args:
        planned: engine arguments that `tune` found; the configuration's own win over them.
    """
    set_environment(config)
    from vllm import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    from actors.device import check_formats
    from actors.vllm_steps import StepLogger

    check_formats(config)
    check_parsers(config)
    steps = StepLogger(clock, occupancy, admission, speculation)
    given = {**planned, **engine_arguments(config)}
    arguments = {**own_defaults(given), **speculation.arguments(given)}
    llm = AsyncLLM.from_engine_args(
        AsyncEngineArgs(**arguments),
        usage_context=UsageContext.LLM_CLASS,
        stat_loggers=[lambda *_: steps],
    )
    # vLLM adds its own to ours; counting for Prometheus costs a tenth of a small step.
    llm.logger_manager.stat_loggers = llm.logger_manager.stat_loggers[:1]
    return llm
