"""Image files: their colours, depths and damages, and decoding them to 8-bit sRGB. Pillow is imported here."""
