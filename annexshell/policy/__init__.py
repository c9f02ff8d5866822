"""Who may do what with which directory, for people who run servers: a file that the forced command names.

``document`` reads and checks the file, ``rules`` decides, ``permission`` is what one client has, ``publickeys`` knows
what an ssh key looks like. Nothing of this is imported without ``--policy``.
"""
