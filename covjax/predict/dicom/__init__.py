"""DICOM: images in, segmentations out."""
