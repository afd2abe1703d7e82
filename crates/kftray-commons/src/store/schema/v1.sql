-- Version 1. `configs.entry` is the one truth about a forward: the flat object of the border, with the fields that only other
-- versions know. The typed columns are computed from it and cannot disagree with it, whoever writes the row.

CREATE TABLE schema_versions (
    version INTEGER PRIMARY KEY,
    -- A program must know this version to open the file.
    opens_from INTEGER NOT NULL,
    -- The program that brought the file to this version.
    program TEXT NOT NULL,
    applied_at INTEGER NOT NULL DEFAULT (unixepoch())
) STRICT;

-- AUTOINCREMENT: an id is never given again, since ids are in histories, logs and scripts.
CREATE TABLE configs (
    id INTEGER PRIMARY KEY AUTOINCREMENT CHECK (id > 0),
    revision INTEGER NOT NULL DEFAULT 1,
    entry TEXT NOT NULL CHECK (json_valid(entry) AND json_type(entry) = 'object'),
    created_at INTEGER NOT NULL DEFAULT (unixepoch()),
    updated_at INTEGER NOT NULL DEFAULT (unixepoch()),
    alias TEXT GENERATED ALWAYS AS (CAST(entry ->> '$.alias' AS TEXT)) VIRTUAL,
    kind TEXT GENERATED ALWAYS AS (CAST(entry ->> '$.workload_type' AS TEXT)) VIRTUAL,
    target TEXT GENERATED ALWAYS AS (CAST(CASE entry ->> '$.workload_type'
        WHEN 'service' THEN entry ->> '$.service'
        WHEN 'proxy' THEN entry ->> '$.remote_address'
        WHEN 'expose' THEN entry ->> '$.alias'
        ELSE entry ->> '$.target' END AS TEXT)) VIRTUAL,
    context TEXT GENERATED ALWAYS AS (CAST(entry ->> '$.context' AS TEXT)) VIRTUAL,
    kubeconfig TEXT GENERATED ALWAYS AS (CAST(entry ->> '$.kubeconfig' AS TEXT)) VIRTUAL,
    namespace TEXT GENERATED ALWAYS AS (CAST(entry ->> '$.namespace' AS TEXT)) VIRTUAL,
    protocol TEXT GENERATED ALWAYS AS (CAST(entry ->> '$.protocol' AS TEXT)) VIRTUAL,
    local_port INTEGER GENERATED ALWAYS AS (CAST(entry ->> '$.local_port' AS INTEGER)) VIRTUAL,
    remote_port TEXT GENERATED ALWAYS AS (CAST(entry ->> '$.remote_port' AS TEXT)) VIRTUAL
) STRICT;

CREATE INDEX configs_alias ON configs (alias);

-- A row for each forward that somebody wants to run.
CREATE TABLE desired (
    config_id INTEGER PRIMARY KEY REFERENCES configs (id) ON DELETE CASCADE,
    since INTEGER NOT NULL DEFAULT (unixepoch())
) STRICT;

CREATE VIEW tags AS
    SELECT configs.id AS config_id, tag.key AS key, CAST(tag.value AS TEXT) AS value
    FROM configs, json_each(configs.entry, '$.tags') AS tag;

-- A group is the value of the tag `group`, so that the reference groups the same way (its `tag:group`).
CREATE VIEW groups AS
    SELECT value AS name, config_id FROM tags WHERE key = 'group' AND value <> '';

CREATE TABLE settings (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL,
    updated_at INTEGER NOT NULL DEFAULT (unixepoch())
) STRICT, WITHOUT ROWID;

-- Bounded by the program, per forward.
CREATE TABLE history (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    config_id INTEGER NOT NULL REFERENCES configs (id) ON DELETE CASCADE,
    -- Milliseconds since the Unix epoch.
    at INTEGER NOT NULL,
    -- What happened, as the host writes it.
    event TEXT NOT NULL
) STRICT;

CREATE INDEX history_config ON history (config_id, id);

-- Project files that were allowed what widens exposure, by the hash of their content.
CREATE TABLE consents (
    hash TEXT PRIMARY KEY,
    path TEXT NOT NULL,
    -- What was agreed to, in words: a JSON list of texts.
    wishes TEXT NOT NULL CHECK (json_valid(wishes)),
    granted_at INTEGER NOT NULL DEFAULT (unixepoch())
) STRICT, WITHOUT ROWID;

-- What was learnt about the way to a cluster, as the host writes it.
CREATE TABLE transports (
    cluster TEXT PRIMARY KEY,
    memory TEXT NOT NULL,
    updated_at INTEGER NOT NULL DEFAULT (unixepoch())
) STRICT, WITHOUT ROWID;

-- Global shortcuts of the reference, kept for the desktop application.
CREATE TABLE shortcuts (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    keys TEXT NOT NULL,
    action TEXT NOT NULL,
    -- JSON; ids in it are ours.
    data TEXT CHECK (data IS NULL OR json_valid(data)),
    enabled INTEGER NOT NULL DEFAULT 1
) STRICT;

-- Databases of the reference that were taken over, so that it happens once.
CREATE TABLE adopted (
    path TEXT PRIMARY KEY,
    at INTEGER NOT NULL DEFAULT (unixepoch())
) STRICT, WITHOUT ROWID;
