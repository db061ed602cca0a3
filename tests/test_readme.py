import re

import yaml
from conftest import ROOT

from pipelines.config import RunConfig
from pipelines.distill_config import DistillConfig
from pipelines.errors import EXIT_BUDGET, EXIT_ERRORS, EXIT_FAILED, EXIT_OK, EXIT_USAGE
from pipelines.operations import Operations
from pipelines.requests import REQUEST_FIELDS
from pipelines.schema import RESULT
from pipelines.tier import VLLM, Tier

README = (ROOT / "README.md").read_text()


def test_the_configurations_in_the_readme_are_valid() -> None:
    for text in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL):
        section = yaml.safe_load(text)
        if section.keys() == {"engine"}:
            VLLM.model_validate(section["engine"])
        elif section.keys() == {"name", "engine", "billing"}:
            Tier.model_validate(section)
        elif "teacher" in section:
            DistillConfig.model_validate(section)
        else:
            RunConfig.model_validate(section)


def test_every_field_of_a_row_stands_in_the_readme() -> None:
    table = README.split("### What a row may ask for")[1].split("###")[0]
    assert set(REQUEST_FIELDS) <= set(re.findall(r"[a-z_]+", table))


def test_every_key_of_operations_stands_in_the_readme() -> None:
    table = README.split("### What operators set")[1].split("## ")[0]
    assert set(Operations.model_fields) <= set(re.findall(r"\| `(\w+)` \|", table))


def test_every_result_column_stands_in_the_readme() -> None:
    named = set(re.findall(r"[a-z_0-9]+", README))
    assert set(RESULT.names) <= named


def test_the_exit_codes_are_those_of_the_readme() -> None:
    assert (EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_ERRORS, EXIT_BUDGET) == (0, 1, 2, 3, 4)
    assert "Exit codes: 0 every row answered; 1 the run failed" in README
    assert "2 usage or\nconfiguration" in README


def test_the_map_names_real_files() -> None:
    life = README.split("## The life of a row")[1].split("## Map")[0]
    for name in re.findall(r"`([a-z]+/[a-z_]+\.py)`", life):
        assert (ROOT / name).is_file(), name


def test_the_clients_have_the_versions_that_are_installed() -> None:
    table = README.split("### Clients")[1].split("## ")[0]
    named = dict(re.findall(r"^\| ([a-z-]+) \| ([0-9.]+) \|", table, re.MULTILINE))
    pinned = dict(
        line.split("==") for line in (ROOT / "requirements/clients.txt").read_text().split()
        if "==" in line
    )  # fmt: skip
    assert named == {name: pinned[name] for name in named}
    assert len(named) == 5


def test_the_two_commands_are_make_targets() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in ("demo", "test", "test-clients", "setup", "check"):
        assert f"make {target}" in README
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
