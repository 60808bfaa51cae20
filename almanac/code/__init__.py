"""Which code runs on the way to something, found by following imports, and a digest of it.

following.py   from modules to all that they import, in turn
compiled.py    a module as Python compiled it: its digest, and what it imports
cached.py      what is known of compiled modules, kept from process to process
libraries.py   versions of what others wrote
"""
