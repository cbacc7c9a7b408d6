SUFFIXES = {".dcm", ".dicom"}
def is_dicom(path):
    with open(path, "rb") as f:
        return f.read(132)[128:] == b"DICM"
