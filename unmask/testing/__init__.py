"""Tests that anybody can run on their own: golden cases of the official code, a method's conformance."""

from .conformance import check_method

__all__ = ["check_method"]
