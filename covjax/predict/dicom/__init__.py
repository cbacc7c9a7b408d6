"""Reads DICOM images: pixels as a viewer shows them."""
