-- Machines of a paused deployment that did not begin wait.
ALTER TABLE deployment ADD COLUMN paused BOOLEAN NOT NULL DEFAULT FALSE;
