"""What any process of the instance needs: start, priority, shared memory, sockets, settings."""
