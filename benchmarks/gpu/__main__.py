import os
import sys

# Asking whether there is a GPU must not start CUDA here: a fork could not use it any more.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

from benchmarks.gpu.run import main

sys.exit(main())
