-- The volume that a machine comes up from when it boots from the network, of one machine only; and whether a machine that says to
-- be it gets it without being approved by its code.
ALTER TABLE machine ADD COLUMN volume BLOB REFERENCES volume (id);
ALTER TABLE machine ADD COLUMN unattended INTEGER NOT NULL DEFAULT 0 CHECK (unattended IN (0, 1));
CREATE UNIQUE INDEX machine_volume ON machine (volume) WHERE volume IS NOT NULL;
