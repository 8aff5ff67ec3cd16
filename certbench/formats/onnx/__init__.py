"""ONNX files: each becomes an `nn.Module` of ours, one step per operator, compared with onnxruntime when it is loaded.

`operators` is the table of operators, `files` reads a file, `folding` turns its graph into steps, `module` runs them,
and `loading` puts these together.
"""
