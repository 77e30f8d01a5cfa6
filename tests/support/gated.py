"""Preloaded where a lab's processes are forked: they pass through gates (`tests.support.gates`)."""

from tests.support.gates import install

install()
