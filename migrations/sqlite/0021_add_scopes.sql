-- JSON: the groups of machines that an operator's work is limited to; none: all machines, and the site.
ALTER TABLE account ADD COLUMN scope TEXT NOT NULL DEFAULT '[]';
ALTER TABLE token ADD COLUMN scope TEXT NOT NULL DEFAULT '[]';
