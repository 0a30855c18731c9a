"""The pure logic of the method: no files, no torch."""
