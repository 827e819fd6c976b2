"""``mergefront serve``: a provider holds a pool of models, users send recipes and get answers.

| file | subject |
| --- | --- |
| ``settings.py`` | the pool file's content, validated |
| ``wire.py`` | bodies and answers of every route, the source of the OpenAPI document |
| ``application.py`` | the routes; ``openai_routes.py`` those that OpenAI's clients know |
| ``access.py`` | who asks (bearer tokens) and how much is left of the quota |
| ``guard.py`` | what is refused before a route sees it: large bodies, foreign pages |
| ``queueing.py`` | one job at a time, in turns that are fair to clients and their sessions |
| ``pool.py`` | the resident models: one merge applied at a time |
| ``service.py`` | what is behind the routes; ``dependencies.py`` how they get at it |
| ``state.py`` | sessions and what was used, in an SQLite file |
| ``echo.py`` | a text's own tokens with their log-probabilities |
| ``metrics.py`` | counters in Prometheus' text format |
| ``process.py`` | the process: address, signals, the end |

The other side is ``mergefront.adapters.remote.merge_service``.
"""
