-- When an install was last heard of is asked for each one that is shown.
CREATE INDEX target_install ON target (install);
