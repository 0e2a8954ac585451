-- It is there already; here for the two databases to have the same migrations.
CREATE INDEX IF NOT EXISTS target_install ON target (install);
