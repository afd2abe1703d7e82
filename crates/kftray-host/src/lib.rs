//! The host: the one process per user that owns all forwards, and the API it serves to every face.
