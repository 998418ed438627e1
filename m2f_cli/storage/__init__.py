"""A URI in, bytes out, and back: files of this machine, of web servers and of object stores."""
