"""What the doctor checks before a run is paid for.

findings   one finding a check; work that is given up after a time
facts      what a process sees around it: software, disks, shared memory
places     paths: read, written, put only where nothing is; by the driver and by nodes
looks      the looks of the driver at all places, and the files that it put there
nodes      Ray, and a probe on each node of its cluster
alike      versions and clocks, across nodes and stores
room       actors, object store and disk: whether there is enough
ranking    the ranker on an actor of the size asked for
"""
