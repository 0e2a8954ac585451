-- Bytes a second that each machine of a deployment receives at most.
ALTER TABLE deployment ADD COLUMN rate_limit INTEGER;
