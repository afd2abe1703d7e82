-- A database in the shapes of older versions, written by hand from descriptions of the format: no tables but two, no columns
-- that came later, rows without the placeholders that a later start merges in, booleans as texts, nulls, a row that is
-- no entry, a pod entry with a service.
CREATE TABLE configs (id INTEGER PRIMARY KEY, data TEXT NOT NULL);
CREATE TABLE config_state (id INTEGER PRIMARY KEY, config_id INTEGER NOT NULL, is_running BOOLEAN NOT NULL DEFAULT false);
INSERT INTO configs VALUES (3, '{"id":3,"service":"web","namespace":"shop","local_port":8080,"remote_port":80,"context":"dev","workload_type":"service","protocol":"tcp","remote_address":null,"local_address":"127.0.0.1","alias":"web","domain_enabled":"true","kubeconfig":null,"target":null}');
INSERT INTO configs VALUES (7, '{"id":7,"service":"search","namespace":"shop","local_port":9200,"remote_port":9200,"context":"dev","workload_type":"pod","protocol":"tcp","domain_enabled":"false","target":"app=search","http_logs_enabled":"true"}');
INSERT INTO configs VALUES (8, '{"id":8,"service":"default-service","namespace":"default-namespace","local_port":0,"remote_port":0,"context":"current-context","workload_type":"default-workload","protocol":"protocol","remote_address":"default-remote-address","target":"default-target","alias":"default-alias","kubeconfig":"default"}');
INSERT INTO configs VALUES (9, 'not even JSON');
INSERT INTO configs VALUES (12, '{"service":"default-service","namespace":"shop","local_port":15432,"remote_port":5432,"context":"current-context","workload_type":"proxy","protocol":"tcp","remote_address":"db.internal","target":"default-target","alias":"proxy-tcp-15432","kubeconfig":"default"}');
INSERT INTO config_state VALUES (1, 3, 1);
INSERT INTO config_state VALUES (2, 7, 0);
INSERT INTO config_state VALUES (3, 8, 1);
