"""The process that libFuzzer drives: one input after another through a reader.

  python -m experiments.faults.fuzz_one TARGET SEEDS [flags of libFuzzer] [FILE]

TARGET is one of `fuzz_targets.TARGETS`. With a FILE alone, that input is tried once.
`fuzz.py` starts it. The costs of an input that cost more than those before are printed
as a line of JSON.
"""

import sys

import atheris

# Not covidqu.py: atheris keeps what a comparison of instrumented code gives, and there
# it is arrays of the size of the picture.
with atheris.instrument_imports(
    include=[
        "covjax.data.image_io", "covjax.data.png", "covjax.data.containers",
        "covjax.predict.dicom.reader", "covjax.predict.dicom.codecs",
        "covjax.predict.dicom.lut", "PIL",
        "pydicom.filereader", "pydicom.dataelem", "pydicom.encaps", "pydicom.values",
    ]
):  # fmt: skip
    # Loaded here, since covjax loads them only when it needs them.
    import pydicom.encaps
    import pydicom.filereader
    import pydicom.values  # noqa: F401
    from PIL import MpoImagePlugin  # noqa: F401

    from covjax.data import image_io, png
    from covjax.predict.dicom import reader

from experiments.faults.fuzz_targets import TARGETS, Costs

# Smaller pictures than a run may read, so that many are tried.
image_io.MAX_PIXELS = png.MAX_PIXELS = 2**18
reader._MOST_INFLATED = 2**20

if __name__ == "__main__":
    costs = Costs()
    target = TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, lambda content: costs.check(target, content))
    atheris.Fuzz()
