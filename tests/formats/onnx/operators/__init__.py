"""Tests of the operators of ONNX."""
