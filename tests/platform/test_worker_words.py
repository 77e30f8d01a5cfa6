"""What a worker says of an error goes on record: without credentials."""

from __future__ import annotations

from typing import Any

from shoal.protocol.said import Failed
from shoal.worker.voice import Voice


def test_credentials_in_an_error_of_the_training_code_are_masked() -> None:
    said: list[Any] = []

    class Line:
        def send(self, message: Any) -> None:
            said.append(message)

    voice = Voice("a/x@n", Line(), False, None)  # type: ignore[arg-type]
    try:
        raise OSError("no answer from s3://me:hunter2@host, token=sk-verysecret")
    except OSError as error:
        voice.failed("code", error)
    (failed,) = said
    assert isinstance(failed, Failed)
    assert "OSError: no answer from" in failed.message
    assert "Traceback" in failed.trace
    for text in (failed.message, failed.trace):
        assert "hunter2" not in text
        assert "verysecret" not in text
