-- JSON of wire::Inventory, as the machine's agent said last.
ALTER TABLE machine ADD COLUMN inventory TEXT;
