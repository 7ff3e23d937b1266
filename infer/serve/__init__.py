"""A server of videos over HTTP: the API, its queue and the process that makes the videos."""
