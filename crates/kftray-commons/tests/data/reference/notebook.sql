-- On top of `tables-0.35.sql`, by hand: settings with and without meaning to us, the bookkeeping of 0.35 in the same table, shortcuts,
-- running forwards with their process, log settings that only the second place has.
INSERT INTO configs VALUES (1, '{"service":"web","namespace":"shop","local_port":8080,"remote_port":80,"context":"dev","workload_type":"service","protocol":"tcp","alias":"web"}');
INSERT INTO configs VALUES (5, '{"service":"api","namespace":"shop","local_port":8081,"remote_port":80,"context":"dev","workload_type":"service","protocol":"tcp","alias":"api","http_logs_enabled":false}');
INSERT INTO configs VALUES (6, '{"service":"api","namespace":"shop","local_port":8082,"workload_type":"service","alias":"no remote port"}');
INSERT INTO config_state VALUES (1, 1, 1, 4242, 0, NULL, NULL, 918273);
INSERT INTO config_state VALUES (2, 1, 1, 4242, 0, NULL, NULL, 918273);
INSERT INTO config_state VALUES (3, 5, 1, 0, 1, 3, 'pod is gone', NULL);
INSERT INTO http_logs_config VALUES (1, 1, 2048, 3, 0, NULL, NULL);
INSERT INTO http_logs_config VALUES (5, 1, 10485760, 7, 1, NULL, NULL);
INSERT INTO settings VALUES ('disconnect_timeout_minutes', '30', NULL);
INSERT INTO settings VALUES ('network_monitor', 'false', NULL);
INSERT INTO settings VALUES ('mcp_server_port', '70000', NULL);
INSERT INTO settings VALUES ('window_size_preset', 'large', NULL);
INSERT INTO settings VALUES ('auto_update_enabled', 'true', NULL);
INSERT INTO settings VALUES ('config_view', '{"group_by":"tag:team","filters":[{"field":"namespace","values":["shop"]}]}', NULL);
INSERT INTO settings VALUES ('setting_of_tomorrow', 'on', NULL);
INSERT INTO settings VALUES ('last_update_check', '1760000000', NULL);
INSERT INTO settings VALUES ('telemetry_enabled', 'true', NULL);
INSERT INTO settings VALUES ('running_snapshot:file:1', '{"service":"web"}', NULL);
INSERT INTO settings VALUES ('uncertain_create:file:1:0123456789abcdef', '{}', NULL);
INSERT INTO settings VALUES ('expose_history_baseline:file', '1', NULL);
INSERT INTO shortcuts VALUES (1, 'Toggle Window', 'Ctrl+Shift+F1', 'toggle_window', NULL, NULL, 1, NULL, NULL);
INSERT INTO shortcuts VALUES (2, 'Shop', 'Ctrl+Alt+S', 'start_port_forward', '{"config_ids":[5,1,6,99]}', NULL, 0, NULL, NULL);
INSERT INTO shortcuts VALUES (3, 'Old', 'Ctrl+Alt+O', 'config_action', NULL, 5, 1, NULL, NULL);
