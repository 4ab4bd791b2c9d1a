"""Images: files, arrays and bytes of pixels."""
