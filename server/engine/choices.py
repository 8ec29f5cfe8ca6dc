"""Names that options choose from. Imports nothing, so that `--help` is fast."""

RUNNERS = ("auto", "torch", "openvino", "cuda-graphs")
PRECISIONS = ("auto", "float32", "bfloat16", "float16", "int8")
ON_ALARM = ("report", "tighten", "full-depth")
