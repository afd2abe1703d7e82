-- Names and types of the tables that kftui 0.35.1 makes, in words of our own; its triggers and indexes are left out.
CREATE TABLE configs (id INTEGER PRIMARY KEY, data TEXT NOT NULL);
CREATE TABLE config_state (id INTEGER PRIMARY KEY, config_id INTEGER NOT NULL REFERENCES configs (id) ON DELETE CASCADE,
    is_running BOOLEAN NOT NULL DEFAULT false, process_id INTEGER, is_retrying BOOLEAN NOT NULL DEFAULT false,
    retry_count INTEGER, last_error TEXT, process_start INTEGER);
CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL, updated_at DATETIME);
CREATE TABLE http_logs_config (config_id INTEGER PRIMARY KEY REFERENCES configs (id) ON DELETE CASCADE,
    enabled BOOLEAN NOT NULL DEFAULT false, max_file_size INTEGER, retention_days INTEGER, auto_cleanup BOOLEAN,
    created_at DATETIME, updated_at DATETIME);
CREATE TABLE shortcuts (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, shortcut_key TEXT NOT NULL, action_type TEXT NOT NULL,
    action_data TEXT, config_id INTEGER REFERENCES configs (id) ON DELETE SET NULL, enabled BOOLEAN NOT NULL DEFAULT true,
    created_at DATETIME, updated_at DATETIME);
