"""The Lua namespaces of the manual, one file each."""
