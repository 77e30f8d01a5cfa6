"""The job that docs/fine-tuning.md shows."""

from __future__ import annotations

import re
from pathlib import Path

from shoal.config import Job, parse
from shoal.yamlfile import load_yaml
from shoal_workloads.sft import Sft

PAGE = Path(__file__).parents[3] / "docs/fine-tuning.md"


def test_its_fields_are_a_job_s_and_the_workload_s() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    job = parse(Job, load_yaml(text, PAGE.name), source=PAGE.name)
    section = {name: value for name, value in job.workload.items() if name not in ("path", "origin")}
    assert Sft.Config.model_validate(section).schedule_steps == job.steps
