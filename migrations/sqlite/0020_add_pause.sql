-- Machines of a paused deployment that did not begin wait.
ALTER TABLE deployment ADD COLUMN paused INTEGER NOT NULL DEFAULT 0;
