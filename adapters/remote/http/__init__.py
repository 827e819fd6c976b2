"""The HTTP client under every API backend: no model library is imported here.

| file | subject |
| --- | --- |
| ``client.py`` | ``HttpClient``: one request, asked until it is answered, cached, counted |
| ``retry.py`` | which faults are tried again, and after how long |
| ``breaker.py`` | a server that keeps failing is left alone for a while, then given up |
| ``budget.py`` | what was spent, and the limit that stops a search |
| ``endpoint.py`` | where a server is and the key it wants; keys come from the environment only |
| ``cache.py`` | responses by exact request; the protocol that ``mergefront.storage`` implements |
| ``json_answers.py`` | strict reading of what a server said |
"""
