"""The values of a row, the same in every layout: an image, choices, an answer. Nothing here opens a file."""
