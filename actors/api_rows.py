"""What every engine behind an API has: rows in a provider's words, and no model of its own."""

from collections.abc import Mapping
from typing import Any

from actors.admission import Admission
from actors.api_dialects import dialect_of
from actors.api_reading import Body
from pipelines.api_tier import API
from pipelines.engine_time import EngineClock, Occupancy
from pipelines.errors import RowProblem
from pipelines.requests import Request


class APIRows:
    """The part of an `Engine` that does not depend on how rows travel.

    Args:
        defaults: the run's sampling fields, for what a row leaves out.
    """

    def __init__(self, config: API, defaults: Mapping[str, Any]) -> None:
        self.model = config.model
        self.clock = EngineClock()
        self.occupancy = Occupancy()
        self.admission = Admission(defaults.get("max_tokens"))
        self._config, self._defaults = config, defaults
        self._dialect = dialect_of(config)

    def refuse(self, request: Request) -> RowProblem | None:
        return self._dialect.refuse(request, self._fields(request))

    def give_up(self, request: Request) -> bool:
        return False

    def speculation_report(self) -> dict[str, Any]:
        return {}

    def _body(self, request: Request) -> Body:
        return self._dialect.body(request, self._fields(request))

    def _fields(self, request: Request) -> dict[str, Any]:
        return {**self._defaults, **request.sampling}
