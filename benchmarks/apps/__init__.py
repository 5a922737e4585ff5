"""The same small application with each contender: what is measured. Each module is run in processes of its own.

A module has the functions of `client.App`. It reads where the servers are from the environment (`work`).
"""
